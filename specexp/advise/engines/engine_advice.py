"""Advice on served engines: which of those given is the fastest on the task's prompts, and if the difference is sure.

Their outputs are asked for as `evaluate` does, paired and interleaved. What drafts would do that no engine given has is
predicted in `engine_prediction.py`, where methods name them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from specexp.advise.engines import engine_prediction
from specexp.advise.engines.engine_prediction import EngineCosts, measured_costs, own_methods
from specexp.config import Experiment, load_settings
from specexp.errors import ConfigError
from specexp.evaluation import runner
from specexp.evaluation.preparation import Prepared, note_inputs
from specexp.evaluation.served import warnings
from specexp.evaluation.summaries import pooled
from specexp.metrics.paired import timed
from specexp.metrics.statistics import SIGNIFICANT, Interval, rate_ratio, swap_p
from specexp.storage.records import Record, RecordFile
from specexp.storage.run_folder import OutputFolder

FEWEST = 6  # with fewer prompts, no paired two-sided test can reach 5 %
NOT_PREDICTED = (
    "Not predicted: how fast other drafts would be. Name speculative, lookup or suffix in methods next to the engines,"
    " or serve them and name each as an engine."
)


@dataclass(frozen=True, slots=True)
class EngineAdvice:
    """`fastest` answers at `ratio` times the speed of `other`: the first engine, or the next fastest if it is the
    first itself. `metrics` are by label."""

    fastest: str
    other: str
    ratio: Interval
    p: float
    num_prompts: int
    metrics: Mapping[str, Mapping[str, float]]
    notes: Sequence[str]

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT

    def sentence(self) -> str:
        """The recommendation in words."""
        ratio = self.ratio
        speed = f"{ratio.value:.2f}x the speed of {self.other} (95 %: {ratio.low:.2f}x to {ratio.high:.2f}x"
        test = f", p = {self.p:.2g})" if self.num_prompts >= FEWEST else ")"
        if self.significant:
            return f"Use {self.fastest}: it answers at {speed}{test}."
        why = f"not significant at n = {self.num_prompts}"
        if self.num_prompts < FEWEST:
            why = f"and fewer than {FEWEST} prompts cannot show a significant difference"
        return f"Perhaps {self.fastest}: it answers at {speed}{test}, {why}. Measure more prompts."


def checked(experiment: Experiment, sweep: bool, draft_cost: float | None = None) -> Experiment:
    """The experiment, if engines can be compared, or drafts in one predicted. Raises ConfigError with every fault."""
    own = own_methods(experiment)
    faults = engine_prediction.faults(experiment) + load_settings.refused(experiment)
    if len(experiment.methods) - len(own) < 1:
        faults.append("methods has no engine, but the settings have the part engine; name one, or leave engine out.")
    elif len(experiment.methods) - len(own) < 2 and not own:
        faults.append(
            "methods has one engine; name another one to compare it with, or speculative, lookup or suffix, which are"
            " predicted."
        )
    if draft_cost is not None and not own:
        faults.append(
            "draft_cost is given, but methods has engines alone, and their speed is measured; leave it out, or add"
            " speculative, lookup or suffix."
        )
    if sweep:
        faults.append("sweep is given, but all engines are measured anyway; leave it out.")
    if experiment.history != "baseline":
        faults.append(f"history is {experiment.history}, but engines are compared on the same prompts; leave it out.")
    if faults:
        raise ConfigError(faults)
    return experiment


def engines_alone(experiment: Experiment) -> Experiment:
    """The experiment without our own methods: what the engines are asked for."""
    own = own_methods(experiment)
    return replace(experiment, methods=tuple(method for method in experiment.methods if method not in own))


def measure(
    prepared: Prepared, folder: OutputFolder, records: RecordFile, predicts: bool = False
) -> EngineAdvice:  # fmt: skip
    """Ask all engines for all outputs that the folder does not have, and compare them. Raises EngineError."""
    note_inputs(prepared, folder)
    runner.run(prepared, folder, records)
    facts = list((folder.read_json("environments.json") or {}).values())
    return advice_on(prepared, records.records, facts, predicts)


def advice_on(
    prepared: Prepared, records: Sequence[Record], facts: Sequence[Mapping[str, Any]], predicts: bool = False
) -> EngineAdvice:
    """Compare engines by their records; `facts` are the folder's environments. With `predicts` drafts are predicted."""
    by_label = {each.config.label: [record for record in records if record["label"] == each.config.label]
                for each in prepared.served}  # fmt: skip
    metrics = pooled(prepared, None, records)
    order = sorted(by_label, key=lambda label: -metrics[label]["speed/tokens_per_second"])
    first = prepared.served[0].config.label
    other = order[1] if order[0] == first else first
    times = timed(by_label[order[0]], "seconds"), timed(by_label[other], "seconds")
    notes = [] if predicts else [NOT_PREDICTED]
    if len(order) > 2:
        notes.append(
            f"The fastest of {len(order)} engines was chosen by these numbers: expect a little less of it on other"
            " prompts."
        )
    notes += warnings(by_label, facts)
    return EngineAdvice(
        order[0], other, rate_ratio(*times), swap_p(*times), len(prepared.examples), metrics, tuple(notes)
    )


def draft_costs(advice: EngineAdvice) -> EngineCosts | None:
    """What a drafted token costs, by the first engine, which must not draft, and the first other one that tells."""
    plain, *others = advice.metrics
    told = (measured_costs(plain, other, advice.metrics) for other in others)
    return next((costs for costs in told if costs is not None), None)


def as_json(advice: EngineAdvice, experiment: Experiment) -> dict[str, Any]:
    """What `advice.json` holds."""
    result = asdict(advice) | {"significant": advice.significant, "sentence": advice.sentence()}
    return result | {"setting": {**experiment.as_dict(), "settings_hash": experiment.hash}}


def table(advice: EngineAdvice) -> str:
    """The engines by speed, and the recommendation."""
    width = max(map(len, advice.metrics))
    lines = [f"{'':<{width}}{'tokens/s':>10}{'first token, s':>16}{'s/token':>10}{'tokens/call':>13}{'accuracy':>10}"]
    forms = {
        "speed/tokens_per_second": (".0f", 10), "speed/time_to_first_token": (".3f", 16),
        "speed/time_per_token": (".4f", 10), "accept/mean_length": (".2f", 13), "quality/accuracy": (".1%", 10),
    }  # fmt: skip
    for label, metrics in sorted(advice.metrics.items(), key=lambda each: -each[1]["speed/tokens_per_second"]):
        cells = [
            f"{format(metrics[name], form) if name in metrics else '':>{size}}" for name, (form, size) in forms.items()
        ]
        lines.append(f"{label:<{width}}{''.join(cells)}".rstrip())
    return "\n".join([*lines, "", advice.sentence(), *(f"- {note}" for note in advice.notes)])


def logged(advice: EngineAdvice) -> dict[str, float]:
    """The metrics for MLflow."""
    fastest, other = advice.metrics[advice.fastest], advice.metrics[advice.other]
    return {
        "advice/measured_speedup": advice.ratio.value,
        "advice/measured_speedup_low": advice.ratio.low,
        "advice/measured_speedup_high": advice.ratio.high,
        "advice/plain_tokens_per_second": other["speed/tokens_per_second"],
        "advice/tokens_per_second": fastest["speed/tokens_per_second"],
        "advice/prompts": advice.num_prompts,
        "advice/candidates": len(advice.metrics),
    }
