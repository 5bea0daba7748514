"""Advice as text: a sentence of recommendation, how certain it is, and what to keep in mind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from specexp.advise.advice import Advice
from specexp.advise.candidates import PLAIN, Candidate
from specexp.advise.choice import accuracy_preserved, is_faster, may_run
from specexp.advise.forecast import records_of
from specexp.evaluation.divergence import NOT_LOSSLESS
from specexp.evaluation.timing import decoding
from specexp.lm.translated import Translated
from specexp.metrics import incomplete
from specexp.metrics.statistics import Interval, rate_ratio, wilson
from specexp.storage import environment


@dataclass(frozen=True, slots=True)
class Sweep:
    """How far the recommendation is from the best of all candidates that were measured with it and may be run.

    `ratio` is the recommendation's rate / the best one's, `short_measured` 1 - that, `short_predicted` the same for the
    predicted speed-ups. Plain decoding counts as 1.
    """

    best_measured: str
    best_predicted: str
    ratio: Interval
    short_measured: float
    short_predicted: float


def sweep(advice: Advice) -> Sweep:
    """The sweep of an advice that checked every candidate."""
    may = {PLAIN: 1.0}
    for candidate in advice.candidates:
        result = advice.checked[candidate.label]
        if may_run(candidate.lossless, result):
            may[candidate.label] = result.speedup.value
    predicted = {label: advice.forecast.predicted[label].speedup if label != PLAIN else 1.0 for label in may}
    recommended = advice.best or PLAIN
    fastest, promised = (max(values, key=values.__getitem__) for values in (may, predicted))
    ratio = rate_ratio(decoding(advice.timed[recommended]), decoding(advice.timed[fastest]))
    return Sweep(fastest, promised, ratio, 1 - ratio.value, 1 - predicted[recommended] / predicted[promised])


def recommendation(advice: Advice) -> str:
    """The recommendation, in one sentence."""
    prompts = f"{len(advice.prepared.prompts)} prompts"
    if advice.best is None:
        result = {label: advice.checked[label] for label in advice.best_three}
        label = max(result, key=lambda name: result[name].speedup.value)
        return (
            f"Do not speculate: none of the best candidates is faster than plain decoding beyond doubt;"
            f" {label} ran at {_times(result[label].speedup)}, predicted {_predicted(advice, label)}, on {prompts}."
        )
    candidate = next(c for c in advice.candidates if c.label == advice.best)
    return (
        f"Run {advice.best} ({described(candidate)}): {_times(advice.checked[advice.best].speedup)} as fast as plain"
        f" decoding, predicted {_predicted(advice, advice.best)}, on {prompts}."
    )


def described(candidate: Candidate) -> str:
    """A candidate in words, such as `specexec, 32 nodes, depth 8`."""
    tree = candidate.setting.config.tree
    if tree is not None:
        return f"{candidate.kind}, {tree.tree_budget} nodes, depth {tree.max_depth}"
    return f"{candidate.kind}, gamma {'auto up to ' if candidate.adapts else ''}{candidate.size}"


def notes(advice: Advice) -> list[str]:
    """How certain the recommendation is and what to keep in mind, a sentence each."""
    return [*_how_sure(advice), *_why_not(advice), *_lossy(advice), *_disagreements(advice), *_limits(advice)]


def _how_sure(advice: Advice) -> Iterator[str]:
    if advice.best is None:
        return
    result = advice.checked[advice.best]
    yield (
        f"Both prefills included it is {_times(result.end_to_end)}; that both intervals lie above 1 is what makes it"
        " recommended."
    )
    equals = [
        label
        for label in advice.best_three
        if label != advice.best
        and rate_ratio(decoding(advice.timed[advice.best]), decoding(advice.timed[label])).low <= 1
    ]
    if equals:
        yield f"It could not be told apart from {', '.join(equals)} in these runs: more prompts would tell."
    others = [label for label in advice.best_three if label not in (advice.best, *equals)]
    if others:
        yield f"It is faster than {', '.join(others)} beyond the 95 % interval."


def _why_not(advice: Advice) -> Iterator[str]:
    """Why speculation does not pay, or why a faster candidate is passed over."""
    for label in advice.best_three:
        candidate, result = _candidate(advice, label), advice.checked[label]
        if result.unexplained:
            yield (
                f"{label} is {NOT_LOSSLESS}: outputs of {result.unexplained} prompts differ from plain decoding's where"
                f" no near tie explains it. `python -m specexp certify --method {candidate.method}` examines it."
            )
        if not candidate.lossless and is_faster(result) and not accuracy_preserved(result):
            why = (
                f"it lost {result.lost} answers of {result.checked} and gained {result.gained}"
                if result.checked
                else "this task has no answers to check, and its threshold is above what its judge was calibrated to"
            )
            yield f"{label} ran at {_times(result.speedup)}, but {why}."
    if advice.best is not None:
        return
    costs, models = advice.forecast.costs, advice.prepared.pair.models
    if len(models) == 2 and len({model.facts()["fingerprint"] for model in models.values()}) == 1:
        yield "The draft is the target itself: it drafts well, at the price of a target step a token."
    shortest = min(costs.target.keys() - {1}, default=2)
    if advice.alpha is None:
        yield f"Verifying {shortest} positions costs {costs.v(shortest):.2f} target steps."
        return
    yield (
        f"The draft agrees with alpha {advice.alpha:.3f}, a draft step costs c = {costs.c:.3f} target steps, and"
        f" verifying {shortest} positions {costs.v(shortest):.2f}."
    )


def _lossy(advice: Advice) -> Iterator[str]:
    """What a lossy recommendation may cost, and the fastest lossless candidate for comparison."""
    if advice.best is None or _candidate(advice, advice.best).lossless:
        return
    result = advice.checked[advice.best]
    if result.checked:
        most = wilson(result.lost, result.checked)[1]
        yield (
            f"It is lossy: it lost {result.lost} of {result.checked} answers and gained {result.gained}; the share of"
            f" lost answers may be as high as {most:.0%} (95 %). {result.equal:.0%} of its outputs are plain"
            " decoding's."
        )
    else:
        kept = f"{result.equal:.0%} of its outputs are plain decoding's"
        yield f"It is lossy, and this task has no answers to check: {kept}."
    exact = [
        label
        for label, each in advice.checked.items()
        if _candidate(advice, label).lossless and may_run(True, each) and is_faster(each)
    ]
    if exact:
        label = max(exact, key=lambda name: advice.checked[name].speedup.value)
        yield f"The fastest lossless one that ran is {label}, {_times(advice.checked[label].speedup)}."


def _disagreements(advice: Advice) -> Iterator[str]:
    """Predictions that lie outside the measured intervals."""
    for label in advice.best_three:
        interval = advice.checked[label].speedup
        if not interval.low <= advice.forecast.predicted[label].speedup <= interval.high:
            yield f"{label}: predicted {_predicted(advice, label)}, which is outside the measured {_times(interval)}."


def _limits(advice: Advice) -> Iterator[str]:
    experiment = advice.prepared.experiment
    if len(advice.prepared.prompts) == 1 or experiment.repeats == 1:
        yield "Measured on one prompt, or once: its interval says little; raise limit and repeats."
    if any(len(example.turns) > 1 for example in advice.prepared.examples):
        yield "Measured on first turns alone."
    models = advice.prepared.pair.models
    if "draft" not in models:
        yield "No draft model was given: only methods that need none were weighed."
    elif any(candidate.writes_text for candidate in advice.candidates):
        yield (
            "The draft has another tokenizer and writes text, which outputs do not foretell: rounds of some draft"
            " lengths were counted in runs, and those of others lie between them."
        )
    elif isinstance(models["draft"], Translated):
        yield (
            "The draft has another tokenizer: what it drafts is predicted from the committed text, which it reads in"
            " other pieces than its own drafts of the round."
        )
    if environment.on_cuda(advice.environment) and not advice.forecast.costs.by_events:
        yield (
            "On CUDA a call that is timed by itself costs up to 1.5 times what it costs among others: attainable and"
            " predicted speed-ups are rough, and what was measured counts."
        )
    if any(result.lengths == "interpolated" for result in advice.forecast.predicted.values()):
        yield "Mean lengths of some tree budgets or draft lengths lie between counted ones."
    yield from incomplete.warnings({PLAIN: records_of(advice.timed, PLAIN)}, experiment.max_new_tokens)


def sweep_line(result: Sweep) -> str:
    """How the recommendation ranks among all measured candidates."""
    return (
        f"Sweep: the best measured is {result.best_measured}, the best predicted {result.best_predicted}; the"
        f" recommendation is {result.short_measured:.1%} short of the one"
        f" ({result.ratio.low:.2f}-{result.ratio.high:.2f} of its speed), {result.short_predicted:.1%} of the other."
    )


def _candidate(advice: Advice, label: str) -> Candidate:
    return next(c for c in advice.candidates if c.label == label)


def _predicted(advice: Advice, label: str) -> str:
    return f"{advice.forecast.predicted[label].speedup:.2f}x"


def _times(interval: Interval) -> str:
    return f"{interval.value:.2f}x (95 % {interval.low:.2f}-{interval.high:.2f})"
