"""What an engine does instead of what it is asked for: explanations of its outputs, told apart and confirmed by more.

An explanation is named once it is the only one that fits all outputs, and as many outputs as find a bias of the wanted
size do not differ from what it says.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from tqdm import tqdm

from specexp.certify.checks import count
from specexp.engine_certify import bias_power, findings
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject, ExaminedEngine, Tick
from specexp.engine_certify.findings import Explanation, Finding
from specexp.engine_certify.next_tokens import Unknowable, Warping
from specexp.engine_certify.sampled_places import MARGIN, SampledPlace, SampledTarget, sampling_of, target_of
from specexp.engines.body import Sampling
from specexp.engines.responses import Refused

FIT = 1e-4  # an explanation fits unless a test rejects it at this level
CONFIDENCE = 1e-3  # with which a bias is at least as large as it is said to be
FEWEST, MOST = 100, 2000  # samples that a check draws, and that tell what an engine does instead
Array = np.ndarray[Any, Any]


def requests(
    subject: EngineSubject, target: SampledTarget, kind: str, number: int, sampling: Callable[[int], Sampling]
) -> list[EngineRequest]:
    place = target.place
    return [
        EngineRequest((kind, place.prompt, len(place.after), i), place.prompt, sampling(i), place.after)
        for i in range(number)
    ]


def draw(
    subject: EngineSubject, engine: ExaminedEngine, target: SampledTarget, kind: str, number: int, tick: Tick
) -> Array:  # fmt: skip
    """counts[C] of so many outputs, each with a seed of its own."""
    first = subject.prepared.experiment.seed * 1_000_003 + 7_919 * sum(map(ord, kind))

    def sampling(i: int) -> Sampling:
        return sampling_of(target.warping, (first + i) % 2**31, engine.offer.token_ids)

    return target.counts(subject.ask(engine, requests(subject, target, kind, number, sampling), tick))


@dataclass(frozen=True, slots=True)
class CountedSamples:
    """How many outputs were in each cell where an engine was asked to sample like the target: counts[C]."""

    target: SampledTarget
    counts: Array


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Where and with which values more may be sampled to find out what an engine does, and for which check."""

    name: str
    places: Sequence[SampledPlace]
    warpings: Sequence[Warping]


def fitting(sampled: Sequence[CountedSamples], explanations: Sequence[Explanation]) -> list[Explanation]:
    """The explanations that are left: they fit all that was sampled, and none makes it 1 / FIT times as likely.

    The true one is lost with a probability of FIT for each other one, whenever sampling stops (Ville's inequality).
    """
    likely: list[tuple[float, Explanation]] = []
    for each in explanations:
        try:
            both = [(one.counts, one.target.under(each.sampled(one.target.warping))) for one in sampled]
        except Unknowable:
            continue
        if all(bias_power.fits(counts, p, FIT) for counts, p in both):
            likely.append((sum(bias_power.likelihood(counts, p) for counts, p in both), each))
    best = max((likelihood for likelihood, _ in likely), default=0.0)
    return [each for likelihood, each in likely if likelihood > best + math.log(FIT)]


def _targets(subject: EngineSubject, inquiry: Inquiry, warpings: Sequence[Warping]) -> Iterator[SampledTarget]:
    """Everything that may be sampled to find out."""
    for place in inquiry.places:
        for warping in warpings:
            if (target := target_of(subject, place, warping)) is not None:
                yield target


def telling(
    subject: EngineSubject, inquiry: Inquiry, warpings: Sequence[Warping], left: Sequence[Explanation], most: int
) -> tuple[SampledTarget, int] | None:
    """Where to sample next, and how often: the fewest outputs, `most` at most, that tell the most pairs of explanations
    from each other. None if nowhere so few tell any, or if one name is left."""
    result, best = None, (0, 0)
    if len({each.name for each in left}) < 2 or most < FEWEST:
        return None
    for target in _targets(subject, inquiry, warpings):
        try:
            p = [target.under(each.sampled(target.warping), MARGIN[subject.config.dtype]) for each in left]
        except Unknowable:
            continue
        apart = [
            max(bias_power.samples_to_prefer(p[i], p[j], FIT), bias_power.samples_to_prefer(p[j], p[i], FIT))
            for i, j in combinations(range(len(p)), 2)
            if left[i].name != left[j].name
        ]
        told = [max(number, FEWEST) for number in apart if number <= most]
        if told and (-len(told), max(told)) < best and target.tells(max(told)):
            result, best = (target, max(told)), (-len(told), max(told))
    return result


def confirming(
    subject: EngineSubject, inquiry: Inquiry, warpings: Sequence[Warping], sampled: Sequence[CountedSamples],
    left: Sequence[Explanation], most: int,
) -> tuple[SampledTarget, int] | None:  # fmt: skip
    """Where to sample whether the one name that is left is more than a bias that resembles it, and how often.

    Where what it says is farthest from what is asked for, at a place that was not sampled if it is far enough there; as
    often as finds a bias of the wanted size from what it says, `most` at most.
    """
    if most < FEWEST:
        return None
    result, best, bias = None, (False, 0.0), subject.config.bias
    known = [(each.target.place.prompt, each.target.place.after) for each in sampled]
    for target in _targets(subject, inquiry, warpings):
        try:
            p = target.under(left[0].sampled(target.warping), MARGIN[subject.config.dtype])
        except Unknowable:
            continue
        number = min(max(bias_power.samples_needed(len(p), bias, FIT), FEWEST), most)
        apart = float(np.abs(p - target.fair).sum()) / 2
        worth = ((target.place.prompt, target.place.after) not in known and apart >= bias, apart)
        if worth > best and target.tells(number):
            result, best = (target, number), worth
    return result


def explain(
    subject: EngineSubject, engine: ExaminedEngine, inquiry: Inquiry, sampled: Sequence[CountedSamples],
    explanations: Sequence[Explanation], tick: Tick,
) -> tuple[Finding, int]:  # fmt: skip
    """What the engine does instead, and how many more outputs were drawn to tell: up to MOST.

    They tell explanations that fit from each other, and then the one that is left from a bias that resembles it. If no
    explanation fits, it is biased, and by how much.
    """
    sampled, warpings, drawn, rounds, is_confirmed = [*sampled], [*inquiry.warpings], 0, 0, False
    left = fitting(sampled, explanations)
    while left and not is_confirmed:
        is_alone = len({each.name for each in left}) == 1
        if is_alone:
            chosen = confirming(subject, inquiry, warpings, sampled, left, MOST - drawn)
        else:
            chosen = telling(subject, inquiry, warpings, left, MOST - drawn)
        if chosen is None:
            break
        target, number = chosen
        tqdm.write(
            f"{inquiry.name} of {engine.name}: {count(len(left), 'explanation')} left; {number:,} outputs more, at"
            f" {target.warping}, are drawn to {'confirm it' if is_alone else 'tell them apart'}.",
            file=sys.stderr,
        )
        try:
            counts = draw(subject, engine, target, f"{inquiry.name}/more {rounds}", number, tick)
        except Refused:
            warpings.remove(target.warping)
            continue
        sampled.append(CountedSamples(target, counts))
        left, is_confirmed = fitting(sampled, explanations), is_alone
        drawn, rounds = drawn + number, rounds + 1
    if left:
        return findings.of_explanations(left), drawn
    least = max(
        bias_power.at_least(each.target.cells, each.counts, each.target.fair, CONFIDENCE / len(sampled))
        for each in sampled
    )
    # A bias need not show in any single beginning, though all of them together tell it.
    size = f"by at least {least:.2g} of total variation" if least > 0 else "by a little"
    return Finding(findings.BIASED, f"sampling is biased {size}."), drawn


def drawn_more(number: int) -> str:
    """That outputs were drawn to find out what an engine does."""
    return f", and {number:,} to tell what it does instead" if number else ""
