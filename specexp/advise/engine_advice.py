"""Advice on served engines: which of those given is the fastest on the task's prompts, and if the difference is sure.

Their outputs are asked for as `evaluate` does, paired and interleaved. Nothing is predicted: how fast another draft
length would be depends on what calls cost inside a server, which nobody outside can time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specexp.config import Experiment
from specexp.engines.served_methods import SERVED
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
    "Not predicted: how fast other draft lengths would be, since calls inside a server cannot be timed from outside;"
    " serve them, and name each as an engine."
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


def checked(experiment: Experiment, sweep: bool) -> Experiment:
    """The experiment, if its methods are two or more engines alone. Raises ConfigError with every fault."""
    own = [method.label for method in experiment.methods if not method.method.startswith(SERVED)]
    faults = []
    if own:
        faults.append(
            f"methods has {', '.join(own)} next to engines, but advice weighs engines with each other; leave them out,"
            " or run evaluate."
        )
    if len(experiment.methods) - len(own) < 2:
        faults.append("methods has one engine; name another one to compare it with.")
    if sweep:
        faults.append("sweep is given, but all engines are measured anyway; leave it out.")
    if experiment.history != "baseline":
        faults.append(f"history is {experiment.history}, but engines are compared on the same prompts; leave it out.")
    if faults:
        raise ConfigError(faults)
    return experiment


def measure(prepared: Prepared, folder: OutputFolder, records: RecordFile) -> EngineAdvice:
    """Ask all engines for all outputs that the folder does not have, and compare them. Raises EngineError."""
    note_inputs(prepared, folder)
    runner.run(prepared, folder, records)
    facts = list((folder.read_json("environments.json") or {}).values())
    return advice_on(prepared, records.records, facts)


def advice_on(prepared: Prepared, records: Sequence[Record], facts: Sequence[Mapping[str, Any]]) -> EngineAdvice:
    """Compare engines by their records; `facts` are the folder's environments."""
    by_label = {each.config.label: [record for record in records if record["label"] == each.config.label]
                for each in prepared.served}  # fmt: skip
    metrics = pooled(prepared, None, records)
    order = sorted(by_label, key=lambda label: -metrics[label]["speed/tokens_per_second"])
    first = prepared.served[0].config.label
    other = order[1] if order[0] == first else first
    times = timed(by_label[order[0]], "seconds"), timed(by_label[other], "seconds")
    notes = [NOT_PREDICTED]
    if len(order) > 2:
        notes.append(
            f"The fastest of {len(order)} engines was chosen by these numbers: expect a little less of it on other"
            " prompts."
        )
    notes += warnings(by_label, facts)
    return EngineAdvice(
        order[0], other, rate_ratio(*times), swap_p(*times), len(prepared.examples), metrics, tuple(notes)
    )


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
