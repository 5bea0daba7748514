"""An evaluation's settings side by side, for table, figures, report and verdict: repeats pooled, settings numbered.

Nothing here loads a model or draws; the content of an entry can be computed again from its records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specexp.config import Experiment, MethodConfig
from specexp.engines.served_methods import SERVED
from specexp.evaluation import divergence, time_split
from specexp.evaluation.divergence import Divergence
from specexp.evaluation.large_runs import sample
from specexp.evaluation.measured_costs import costs_of
from specexp.evaluation.preparation import Prepared, arithmetic_of
from specexp.evaluation.speed_groups import ReportedSpeeds, timing_of
from specexp.evaluation.summaries import Summary, claims_attainable, pooled
from specexp.storage.records import Record
from specexp.storage.run_folder import OutputFolder


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting. `number` identifies it in figures; `metrics` are over all its repeats; `shares` may be empty.

    `records` are those of a sample in a large run.
    `lossless` is True for a setting that is lossless by design, unless an output refutes it. `divergence` has the
    outputs that differ from plain decoding's, for a setting that must emit its tokens.
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
    def served(self) -> bool:
        """True for a served engine."""
        return self.config.method.startswith(SERVED)

    @property
    def refuted(self) -> bool:
        """True if it is lossless by design but was not in this run."""
        return self.divergence is not None and self.divergence.refuted

    def interval(self, key: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a metric, or None if it has none."""
        low, high = (self.metrics.get(f"{key}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All settings of one experiment, on the same prompts. `claimed` is True if attainable speed-ups are reported, and
    `timing` says whether any speed is."""

    experiment: Experiment
    entries: Sequence[Entry]
    num_prompts: int
    claimed: bool = True
    timing: ReportedSpeeds = field(default_factory=ReportedSpeeds)

    @property
    def baseline(self) -> Entry | None:
        """Plain decoding; of engines alone the first, with which the others are compared."""
        engines = [entry for entry in self.entries if entry.served]
        alone = engines[0] if engines and len(engines) == len(self.entries) else None
        return next((entry for entry in self.entries if entry.config.method == "baseline"), alone)

    def reference(self, entry: Entry) -> Entry | None:
        """What an entry is compared with: the first engine of an engine, whose seconds are of whole requests, else
        plain decoding."""
        if entry.served:
            return next(each for each in self.entries if each.served)
        return self.baseline

    def reference_words(self, entry: Entry) -> str:
        """The name of what an entry is compared with."""
        reference = self.reference(entry)
        return reference.label if reference is not None and reference.served else "plain decoding"

    @property
    def arithmetic(self) -> str:
        """The dtype that the target computes in."""
        return arithmetic_of(self.experiment)

    @property
    def speed(self) -> str:
        """The metric of speed of all settings: relative to plain decoding if it was run; with a batch, of the whole
        batch."""
        section = "speed" if self.experiment.batch == 1 else "batch"
        return f"{section}/{'speedup' if self.baseline else 'tokens_per_second'}"

    def speed_of(self, entry: Entry) -> str:
        """The metric of an entry's speed: relative to what it is compared with, if that was run."""
        section = "speed" if self.experiment.batch == 1 else "batch"
        return f"{section}/{'tokens_per_second' if self.reference(entry) is None else 'speedup'}"

    @property
    def quality(self) -> str:
        """The metric of quality: accuracy, else agreement with plain decoding, else ""."""
        keys = ("quality/accuracy", "quality/equal_to_baseline")
        return next((key for key in keys if any(key in entry.metrics for entry in self.entries)), "")


def compare(
    prepared: Prepared, output: OutputFolder, records: Sequence[Record], known: Summary | None = None
) -> Comparison:
    """Build the comparison from an output folder and its records.

    `known` are the metrics by label and repeat: where there is one repeat, they are those of all records.
    """
    claimed = claims_attainable(output)
    metrics = {label: each for (label, _), each in (known or {}).items()}
    if known is None or len(known) > len(metrics):
        metrics = pooled(prepared, costs_of(output.read_json("costs.json")), records, claimed)
    timing = timing_of(output.read_json("environments.json"), records)
    shares = time_split.read(output)
    differing = divergence.by_label(prepared, output.read_json(divergence.FILE), records)
    some, entries = sample(prepared, records), []
    for number, setting in enumerate(prepared.everything, 1):
        config = setting.config
        result = differing.get(config.label)
        entries.append(
            Entry(
                number,
                config,
                setting.lossless and not (result is not None and result.refuted),
                timing.kept(metrics[config.label]) | (result.metrics() if result is not None else {}),
                [record for record in some if record["label"] == config.label],
                shares.get(config.label, {}),
                result,
            )
        )
    return Comparison(prepared.experiment, entries, len(prepared.examples), claimed, timing)
