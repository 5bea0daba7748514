"""How an evaluation is decoded: by this process, as here, or by others, which then has the same methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from specexp.decoding.draft_length import RelativeCosts
from specexp.evaluation import runner, time_split
from specexp.evaluation.divergence import Explain
from specexp.evaluation.preparation import Prepared
from specexp.pair.loading import Pair, load_pair
from specexp.sequences.names import NameNumbers
from specexp.storage.records import Record, RecordFile
from specexp.storage.run_folder import OutputFolder
from specexp.storage.stored_lines import ChosenLines, StoredLines


class Decoding(Protocol):
    """Everything of an evaluation that needs the models, but for the token view."""

    @property
    def load_pair(self) -> Callable[..., Pair]:
        """Takes what `specexp.pair.loading.load_pair` takes."""
        ...

    @property
    def draft_costs(self) -> Callable[[int], RelativeCosts] | None:
        """What calls cost relative to each other, for `gamma: auto`; None measures them here."""
        ...

    def log_nodes(self, run: tuple[str, str] | None) -> None:
        """Log the system metrics of other machines to this run, (id, address of its store), unless it is None."""
        ...

    def explain(self, records: RecordFile) -> Explain | None:
        """What `divergence.examine` takes."""
        ...

    def run(self, prepared: Prepared, output: OutputFolder, records: RecordFile) -> Prepared:
        """Append what is missing; returns the evaluation without the prompts that could not be decoded."""
        ...

    def complete(self, prepared: Prepared, output: OutputFolder) -> Prepared:
        """As `run`, where no record is missing."""
        ...


class InProcess:
    """Decodes here."""

    load_pair = staticmethod(load_pair)
    draft_costs = None

    def log_nodes(self, run: tuple[str, str] | None) -> None:
        """Nothing: MLflow logs those of this machine."""

    def explain(self, records: RecordFile) -> None:
        return None

    def run(self, prepared: Prepared, output: OutputFolder, records: RecordFile) -> Prepared:
        runner.run(prepared, output, records)
        if prepared.experiment.batch == 1:
            time_split.measure(prepared, output, records)
        return prepared

    def complete(self, prepared: Prepared, output: OutputFolder) -> Prepared:
        runner.complete(prepared, output)
        return prepared


def records_of(prepared: Prepared, records: RecordFile) -> Sequence[Record]:
    """The records of this evaluation's prompts: of all but those that could not be decoded. More than are in memory
    stay in their files."""
    names, kept = NameNumbers(), records.records
    for example in prepared.examples:
        names.number(example.prompt_id)
    if isinstance(kept, StoredLines):
        return ChosenLines(kept, lambda record: names.find(record["prompt_id"]) is not None)
    return [record for record in kept if names.find(record["prompt_id"]) is not None]
