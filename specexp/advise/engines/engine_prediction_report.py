"""What is predicted of drafts in a served engine: words, a table, JSON, metrics, and arguments of engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specexp.advise.candidates import PLAIN
from specexp.advise.engines.engine_outputs import EngineOutput
from specexp.advise.engines.engine_prediction import EngineCosts, PredictedDrafts, best
from specexp.config import Experiment, MethodConfig
from specexp.engine_settings import recommendation
from specexp.engine_settings.recommendation import Recommendation

PLACES = 8  # columns of the table
NO_COST = (
    "No draft length is recommended: what a drafted token costs inside the server is not known. Give draft_cost (in"
    " steps without a draft), or a second engine that drafts and counts its drafts; without a cost, a setting is faster"
    " than plain decoding where a drafted token costs less than `pays below`."
)
ENDS = (
    "Drafts are cut at an output's limit, as our own are; an engine that drafts beyond it counts more drafted tokens."
)
FROM_TEXT = (
    "The engine gives no token ids: outputs were split by the tokenizer, which may do it otherwise than the model wrote"
    " them, and then drafts are accepted less often than is predicted."
)
EXPECTED = "Tokens are sampled: calls are expected values along these outputs, not counts."


@dataclass(frozen=True, slots=True)
class EnginePrediction:
    """All predictions of drafts along the outputs of `engine`; `costs` is None where a drafted token's is not known."""

    engine: str
    experiment: Experiment
    predicted: Sequence[PredictedDrafts]
    costs: EngineCosts | None
    outputs: Sequence[EngineOutput]

    @property
    def best(self) -> PredictedDrafts | None:
        return None if self.costs is None else best(self.predicted, self.costs)

    def sentence(self) -> str:
        """The recommendation in words."""
        if self.costs is None:
            return NO_COST
        chosen = self.best
        cost = f"at {self.costs.per_drafted:.3f} steps a drafted token, {self.costs.source}"
        if chosen is None:
            return f"Do not speculate: no setting is predicted to be faster than plain decoding ({cost})."
        return (
            f"Use {chosen.config.label}: {chosen.mean_length:.2f} tokens a call and {chosen.speedup(self.costs):.2f}x"
            f" the speed without drafts are predicted ({cost}). Serve it and measure it as another engine."
        )

    def notes(self) -> list[str]:
        result = [ENDS]
        if any(out.from_text for out in self.outputs):
            result.append(FROM_TEXT)
        if self.experiment.temperature:
            result.append(EXPECTED)
        kinds = {each.config.method for each in self.predicted}
        if self.costs is not None and len(kinds) > 1:
            result.append(
                "One cost of a drafted token is for all: what is looked up takes no draft model and costs less."
            )
        return result


def table(advice: EnginePrediction) -> str:
    """A row for each setting, in the order of the experiment, and the recommendation."""
    width = max(len(each.config.label) for each in advice.predicted)
    places = min(PLACES, max(len(each.by_position) for each in advice.predicted))
    head = "".join(f"{place:>7}" for place in range(1, places + 1))
    last = f"{'pays below':>12}" if advice.costs is None else f"{'speed-up':>12}"
    lines = [
        f"Predicted along {len(advice.outputs)} outputs of {advice.engine}; accepted by place in the draft:",
        f"{'':<{width}}{'tokens/call':>13}{'drafted/call':>14}{head}{last}",
    ]
    for each in advice.predicted:
        shares = [count / each.rounds if each.rounds else 0.0 for count in each.by_position[:places]]
        cells = "".join(f"{share:>7.1%}" for share in shares) + " " * 7 * (places - len(shares))
        end = f"{each.pays_below:>12.3f}" if advice.costs is None else f"{each.speedup(advice.costs):>11.2f}x"
        lines.append(
            f"{each.config.label:<{width}}{each.mean_length:>13.2f}{each.drafted / each.calls:>14.2f}{cells}{end}"
        )
    return "\n".join([*lines, "", advice.sentence(), *(f"- {note}" for note in advice.notes())])


def as_json(advice: EnginePrediction) -> dict[str, Any]:
    """What `advice.json` holds of it."""
    chosen = advice.best
    return {
        "engine": advice.engine,
        "recommended": None if advice.costs is None else PLAIN if chosen is None else chosen.config.label,
        "sentence": advice.sentence(),
        "notes": advice.notes(),
        "draft_cost": None if advice.costs is None else asdict(advice.costs),
        "outputs": len(advice.outputs),
        "candidates": [
            {
                "label": each.config.label, "method": each.config.method, "gamma": each.config.gamma,
                "tokens": each.tokens, "calls": each.calls, "rounds": each.rounds, "drafted": each.drafted,
                "accepted_by_position": list(each.by_position), "mean_length": each.mean_length,
                "pays_below": each.pays_below,
                "speedup": None if advice.costs is None else each.speedup(advice.costs),
            }
            for each in advice.predicted
        ],
    }  # fmt: skip


def logged(advice: EnginePrediction) -> dict[str, float]:
    """The metrics for MLflow."""
    result = {"advice/prompts": float(len(advice.outputs)), "advice/candidates": float(len(advice.predicted))}
    if advice.costs is not None:
        result["advice/draft_cost"] = advice.costs.per_drafted
        chosen = advice.best
        result["advice/predicted_speedup"] = 1.0 if chosen is None else chosen.speedup(advice.costs)
        result["advice/mean_length"] = 1.0 if chosen is None else chosen.mean_length
    return result


def for_engines(advice: EnginePrediction, vocabulary: str) -> Recommendation | None:
    """The recommended setting for the arguments of engines, plain decoding where none is faster; None without costs."""
    if advice.costs is None:
        return None
    chosen = advice.best
    method = MethodConfig(PLAIN, PLAIN, PLAIN) if chosen is None else chosen.config
    return recommendation.of(advice.experiment, method, True, vocabulary)
