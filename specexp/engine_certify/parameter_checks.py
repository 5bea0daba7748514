"""Whether temperature, top-p, top-k and min-p are obeyed, with speculation and without it.

Outputs are sampled with one parameter that makes a difference at a place, and compared with what they must follow. The
place and the value are those at which the fewest samples tell them from what they follow if it is ignored or applied in
another order. Outputs that are not as they must be are followed by more where several explanations fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from specexp.certify import chi_square
from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, SKIPPED, Check
from specexp.engine_certify import bias_power, findings
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject, ExaminedEngine, Tick
from specexp.engine_certify.explaining import (
    FEWEST,
    FIT,
    MOST,
    CountedSamples,
    Inquiry,
    draw,
    drawn_more,
    explain,
)
from specexp.engine_certify.findings import Finding, explanations_of, made, worst
from specexp.engine_certify.next_tokens import Unknowable
from specexp.engine_certify.sample_check import AMBIGUOUS, LEVEL, small
from specexp.engine_certify.sampled_places import (
    TEMPERATURE,
    VARIANTS,
    SampledPlace,
    SampledTarget,
    sampling_of,
    target_of,
    values_of,
)
from specexp.engines.responses import Refused


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """How one parameter is checked; `target` is None if no place and value tell it from being ignored."""

    name: str
    target: SampledTarget | None
    samples: int
    ambiguous: bool = False  # that a place was left out, since texts do not tell the tokens there
    places: Sequence[SampledPlace] = ()  # all that are known


def level_of(subject: EngineSubject) -> float:
    return LEVEL / (len(VARIANTS) * len(subject.engines))


def plan(subject: EngineSubject, places: Sequence[SampledPlace], name: str) -> ParameterPlan:
    """The place and the value with which the fewest samples tell that a parameter is not obeyed."""
    best, least, ambiguous = ParameterPlan(name, None, MOST), (MOST + 1, 0), False
    for place in places:
        for warping in values_of(name, subject.config.dtype):
            target = target_of(subject, place, warping)
            if target is None:
                continue
            needed, apart = _needed(target, level_of(subject))
            if not target.tells(needed):
                ambiguous = True
            elif (needed, apart) < least:
                best, least = ParameterPlan(name, target, needed), (needed, apart)
    return replace(best, ambiguous=ambiguous, places=places)


def _needed(target: SampledTarget, level: float) -> tuple[int, int]:
    """Samples that tell all that an engine may do from what it must, FEWEST at least; and that tell these from each
    other, which is worth less: a right engine costs the first alone."""
    others = []
    for each in explanations_of(target.warping):
        if each.name == findings.DEFAULTS:  # of few servers, which need not be told from everything else
            continue
        try:
            others.append(target.under(each.sampled(target.warping)))
        except Unknowable:
            continue
    needed = max((bias_power.samples_to_tell(target.fair, other, level) for other in others), default=0)
    apart = [bias_power.samples_to_prefer(one, other, FIT) for one, other in permutations(others, 2)]
    return max(FEWEST, needed), max(apart, default=0)


def num_requests(subject: EngineSubject, plans: Sequence[ParameterPlan]) -> int:
    return sum(each.samples for each in plans if each.target is not None) * len(subject.engines)


def check(subject: EngineSubject, planned: ParameterPlan, tick: Tick) -> Check:
    """Sample each engine with the parameter."""
    name = planned.name
    if not subject.prepared.experiment.temperature:
        return made(name, SKIPPED, "temperature is 0: nothing is sampled.")
    if planned.target is None:
        why = "at no place do so few samples tell whether it is obeyed"
        if not subject.rows_are_known:
            why = subject.why_no_rows
        elif planned.ambiguous:
            why = AMBIGUOUS
        if all(_is_refused(subject, engine, name) for engine in subject.engines):
            return made(name, SKIPPED, f"the server refuses {name}.")
        return made(name, INCONCLUSIVE, f"it cannot be told: {why}.")
    sentences, verdicts, named, numbers = [], [], [], {}
    for engine in subject.engines:
        try:
            verdict, words, finding, p = _one(subject, engine, planned, planned.target, tick)
        except Refused:
            verdict, words, finding, p = SKIPPED, f"the server refuses {name}.", None, 1.0
        sentences.append(f"{engine.name}: {words}")
        verdicts.append(verdict)
        numbers[f"p_{engine.role}"] = p
        if finding is not None:
            named.append(Finding(finding.name, finding.sentence, engine is not subject.engine))
    return made(name, worst(verdicts), " ".join(sentences), named, {"samples": planned.samples, **numbers})


def _is_refused(subject: EngineSubject, engine: ExaminedEngine, name: str) -> bool:
    """True if the server does not take this parameter, which one request finds out."""
    sampling = sampling_of(VARIANTS[name][0], 0, engine.offer.token_ids)
    try:
        subject.ask(engine, [EngineRequest(("refusal", name), 0, sampling)], lambda: None)
    except Refused:
        return True
    return False


def _one(
    subject: EngineSubject, engine: ExaminedEngine, planned: ParameterPlan, target: SampledTarget, tick: Tick
) -> tuple[str, str, Finding | None, float]:  # fmt: skip
    name, samples = planned.name, planned.samples
    counts = draw(subject, engine, target, name, samples, tick)
    p = chi_square.compare(counts, target.fair).p
    if p >= level_of(subject):
        words = f"{name} is obeyed: {samples:,} outputs at {target.warping} follow what it makes of the distribution"
        return PASSED, f"{words} (p {p:.2g}).", None, p
    # At another temperature alone, what ignores it is told from what does not.
    values = [value for each in (name, TEMPERATURE) for value in values_of(each, subject.config.dtype)]
    inquiry = Inquiry(name, planned.places, values)
    finding, more = explain(
        subject, engine, inquiry, [CountedSamples(target, counts)], explanations_of(target.warping), tick
    )  # fmt: skip
    words = f"({samples:,} outputs at {target.warping}{drawn_more(more)}, p {small(p)})"
    return FAILED, f"{finding.sentence} {words}", finding, p
