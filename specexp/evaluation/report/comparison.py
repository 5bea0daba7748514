"""An evaluation's settings side by side, as table, figures, report and verdict see them: repeats together, numbered.

Nothing here loads a model or draws; what an entry holds can be computed again from its records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specexp.config import Experiment, MethodConfig
from specexp.evaluation import divergence, time_split
from specexp.evaluation.divergence import Divergence
from specexp.evaluation.measured_costs import costs_of
from specexp.evaluation.preparation import Prepared, arithmetic_of
from specexp.evaluation.summaries import claims_attainable, pooled
from specexp.methods import is_lossless as is_lossless
from specexp.storage.records import Record
from specexp.storage.run_folder import OutputFolder


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting. `number` names it in figures; `metrics` are of all its repeats; `shares` may be empty.

    `lossless` is one that is by design, and that no output refutes: `divergence` has those that are not plain
    decoding's, of a setting that must emit its tokens.
    """

    number: int
    config: MethodConfig
    lossless: bool
    metrics: Mapping[str, float]
    records: Sequence[Record]
    shares: Mapping[str, float]
    divergence: Divergence | None = None

    @property
    def label(self) -> str:
        return self.config.label

    @property
    def refuted(self) -> bool:
        """Whether it is lossless by design and was not in this run."""
        return self.divergence is not None and self.divergence.refuted

    def interval(self, key: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric that has one."""
        low, high = (self.metrics.get(f"{key}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All settings of one experiment, on the same prompts. `claimed` says whether attainable speed-ups are."""

    experiment: Experiment
    entries: Sequence[Entry]
    num_prompts: int
    claimed: bool = True

    @property
    def baseline(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.config.method == "baseline"), None)

    @property
    def arithmetic(self) -> str:
        """The dtype that the target computes in."""
        return arithmetic_of(self.experiment)

    @property
    def speed(self) -> str:
        """The metric of speed: against plain decoding where that is there, and never of one prompt in a batch."""
        section = "speed" if self.experiment.batch == 1 else "batch"
        return f"{section}/{'speedup' if self.baseline else 'tokens_per_second'}"

    @property
    def quality(self) -> str:
        """The metric of quality: accuracy, else agreement with plain decoding, else none."""
        keys = ("quality/accuracy", "quality/equal_to_baseline")
        return next((key for key in keys if any(key in entry.metrics for entry in self.entries)), "")


def compare(prepared: Prepared, output: OutputFolder, records: Sequence[Record]) -> Comparison:
    """Put together what an output folder holds."""
    claimed = claims_attainable(output)
    metrics = pooled(prepared, costs_of(output.read_json("costs.json")), records, claimed)
    shares = time_split.read(output)
    differing = divergence.by_label(prepared, output.read_json(divergence.FILE), records)
    entries = []
    for number, setting in enumerate(prepared.settings, 1):
        config = setting.config
        found = differing.get(config.label)
        entries.append(
            Entry(
                number,
                config,
                setting.lossless and not (found is not None and found.refuted),
                metrics[config.label] | (found.metrics() if found is not None else {}),
                [record for record in records if record["label"] == config.label],
                shares.get(config.label, {}),
                found,
            )
        )
    return Comparison(prepared.experiment, entries, len(prepared.examples), claimed)
