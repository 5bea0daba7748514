"""failures.json: the prompts of an evaluation or of mining that workers died at, and why. A resume tries them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from specexp.evaluation.report.publish import FAILURES as FILE
from specexp.storage.run_folder import OutputFolder


@dataclass(frozen=True, slots=True)
class Failure:
    """One prompt; `repeat` is of an evaluation. `deaths` are the reasons that the workers' ends were given."""

    prompt_id: str
    deaths: Sequence[str]
    repeat: int = 0

    @property
    def sentence(self) -> str:
        return f"prompt '{self.prompt_id}' has failed: {len(self.deaths)} workers died at it ({self.deaths[-1]})"


def write(output: OutputFolder, failures: Iterable[Failure]) -> None:
    """Write the file, or remove it if nothing has failed."""
    entries = [asdict(each) for each in failures]
    if entries:
        output.write_json(FILE, entries)
    else:
        (output.path / FILE).unlink(missing_ok=True)


def read(output: OutputFolder) -> list[Failure]:
    """Read the file; empty if nothing has failed."""
    return [Failure(**each) for each in output.read_json(FILE) or []]
