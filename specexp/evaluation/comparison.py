"""An evaluation's settings side by side, as table, figures, report and verdict see them: repeats together, numbered.

Nothing here loads a model or draws; what an entry holds can be computed again from its records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specexp.config import Experiment, MethodConfig
from specexp.evaluation import split
from specexp.evaluation.methods import LOSSLESS
from specexp.evaluation.output import OutputFolder
from specexp.evaluation.records import Record
from specexp.evaluation.runner import Prepared, costs_of, pooled


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting. `number` names it in figures; `metrics` are of all its repeats; `shares` may be empty."""

    number: int
    config: MethodConfig
    lossless: bool
    metrics: Mapping[str, float]
    records: Sequence[Record]
    shares: Mapping[str, float]

    @property
    def label(self) -> str:
        return self.config.label

    def interval(self, key: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric that has one."""
        low, high = (self.metrics.get(f"{key}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All settings of one experiment, on the same prompts."""

    experiment: Experiment
    entries: Sequence[Entry]
    num_prompts: int

    @property
    def baseline(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.config.method == "baseline"), None)

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
    metrics = pooled(prepared, costs_of(output.read_json("costs.json")), records)
    shares = split.read(output)
    entries = [
        Entry(
            number,
            setting.config,
            is_lossless(setting.config, prepared.experiment.temperature),
            metrics[setting.config.label],
            [record for record in records if record["label"] == setting.config.label],
            shares.get(setting.config.label, {}),
        )
        for number, setting in enumerate(prepared.settings, 1)
    ]
    return Comparison(prepared.experiment, entries, len(prepared.examples))


def is_lossless(method: MethodConfig, temperature: float) -> bool:
    """Whether the output has the target's distribution, a lossy method's dial at its lossless end included."""
    if method.method == "autojudge":
        return method.threshold == 0
    if method.method == "topk":
        return method.accept_k == 1 and temperature == 0
    return method.method in LOSSLESS
