"""Whether sampled outputs follow the model's distribution: a chi-square test of how they begin, after several prompts.

How many samples the wanted bias needs is said before any is drawn; with fewer the verdict for it is inconclusive.
The same test must find that bias where it is planted in the engine's own outputs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from tqdm import tqdm

from specexp.certify import chi_square
from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, SKIPPED, Check, count
from specexp.engine_certify import bias_power, findings
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject, ExaminedEngine, Tick
from specexp.engine_certify.findings import Explanation, Finding, explanations_of, made
from specexp.engine_certify.next_tokens import Unknowable, Warping
from specexp.engine_certify.sampled_places import (
    MARGIN,
    PLACES,
    VARIANTS,
    SampledPlace,
    SampledTarget,
    sampling_of,
    target_of,
    values_of,
)
from specexp.engines.body import Sampling
from specexp.engines.responses import Refused

NAME = "samples"
LEVEL = 5e-5  # of all places together; the checks of parameters have as much
FIT = 1e-4  # an explanation fits unless a test rejects it at this level
CONFIDENCE = 1e-3  # with which a bias is at least as large as it is said to be
TINY = 1e-300
AMBIGUOUS = "with text alone it could not be checked, since too many outputs have the text of other tokens"
FEWEST, MOST = 100, 2000  # samples that a check draws, and that tell what an engine does instead
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What is sampled, and how many outputs at each place; empty targets say that nothing can be."""

    targets: Sequence[SampledTarget]
    needed: int  # samples at each place that the wanted bias needs
    samples: int
    ambiguous: bool = False  # that a place was left out, since texts do not tell the tokens there
    places: Sequence[SampledPlace] = ()  # all that are known


def warping_of(subject: EngineSubject) -> Warping:
    experiment = subject.prepared.experiment
    return Warping(experiment.temperature, experiment.top_k, experiment.top_p)


def plan(subject: EngineSubject, places: Sequence[SampledPlace]) -> SamplingPlan:
    """Choose places, and say how many samples the wanted bias needs."""
    config = subject.config
    targets: list[SampledTarget] = []
    ambiguous = False
    for place in places:
        if len(targets) < PLACES and (target := target_of(subject, place, warping_of(subject))) is not None:
            number = config.samples or bias_power.samples_needed(len(target.cells.names), config.bias, LEVEL / PLACES)
            ambiguous = ambiguous or not target.tells(number)
            targets += [target] if target.tells(number) else []
    if not targets:
        return SamplingPlan((), 0, 0, ambiguous)
    level = LEVEL / len(targets)
    needed = max(
        bias_power.samples_needed(len(target.cells.names), config.bias, level) for target in targets
    )  # fmt: skip
    samples = config.samples or needed
    print(
        f"samples: to find any bias of total variation {config.bias:g} and more, {needed:,} outputs are needed at each"
        f" of {count(len(targets), 'place')}; {samples:,} are drawn.",
        file=sys.stderr,
    )
    return SamplingPlan(targets, needed, samples, places=places)


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


def check_samples(subject: EngineSubject, planned: SamplingPlan, tick: Tick) -> Check:
    """Sample the engine at each place, and test all of them together by Holm's procedure."""
    if not subject.prepared.experiment.temperature:
        return made(NAME, SKIPPED, "temperature is 0: nothing is sampled.")
    if not planned.targets:
        why = "the model is too sure of its tokens here, or rounding may move a cut; set another temperature or top_p"
        if not subject.rows_are_known:
            why = subject.why_no_rows
        elif planned.ambiguous:
            why = AMBIGUOUS
        return made(NAME, INCONCLUSIVE, f"it cannot be told: {why}.")
    engine, samples, bias = subject.engine, planned.samples, subject.config.bias
    counts = [
        draw(subject, engine, target, f"{NAME}/{i}", samples, tick) for i, target in enumerate(planned.targets)
    ]  # fmt: skip
    tested = [chi_square.compare(each, target.fair) for each, target in zip(counts, planned.targets, strict=True)]
    adjusted = chi_square.holm([each.p for each in tested])
    rng = np.random.default_rng(subject.prepared.experiment.seed)
    control = min(
        chi_square.holm(
            [
                chi_square.compare(bias_power.planted(each, target.fair, bias, rng), target.fair).p
                for each, target in zip(counts, planned.targets, strict=True)
            ]
        )
    )
    level = LEVEL / len(planned.targets)
    surely = max(
        bias_power.least_variation(len(target.cells.names), samples, level) for target in planned.targets
    )  # fmt: skip
    numbers = {
        "samples": samples, "needed": planned.needed, "places": len(counts), "level": LEVEL, "p": min(adjusted),
        "control_p": control, "control_variation": bias, "surely": surely,
    }  # fmt: skip
    details = [
        {"prompt_id": subject.names()[target.place.prompt], "position": len(target.place.after), "p": each.p,
         "adjusted_p": p, "cells": _cells(subject, target, counted)}
        for target, each, p, counted in zip(planned.targets, tested, adjusted, counts, strict=True)
    ]  # fmt: skip
    where = (
        f"{samples:,} outputs at {warping_of(subject)} at each of {count(len(counts), 'place')}, against"
        f" {subject.rows_source()}"
    )
    if min(adjusted) < LEVEL:
        asked = warping_of(subject)
        values = [value for each in VARIANTS for value in values_of(each, subject.config.dtype)]
        inquiry = Inquiry(NAME, planned.places, [asked, *values])
        sampled = [CountedSamples(target, each) for target, each in zip(planned.targets, counts, strict=True)]
        found, more = explain(subject, engine, inquiry, sampled, explanations_of(asked), tick)
        words = f"{where}{drawn_more(more)}: p {small(min(adjusted))} is below {LEVEL:g}. {found.sentence}"
        return made(NAME, FAILED, words, [found], numbers, places=details)
    words = f"{where}: p {min(adjusted):.2g}, level {LEVEL:g}. "
    planted = f"a bias of {bias:g} that is planted in them is {{}} (p {small(control)})"
    if samples < planned.needed or control >= LEVEL:
        words += (
            f"No bias is seen, but so many samples surely find one of {surely:.2g} and more only, and"
            f" {planted.format('found' if control < LEVEL else 'not found')}: a bias of {bias:g} needs"
            f" {planned.needed:,} samples."
        )
        return made(NAME, INCONCLUSIVE, words, (), numbers, places=details)
    words += f"A bias of {surely:.2g} and more would surely be found; {planted.format('found')}."
    return made(NAME, PASSED, words, (), numbers, places=details)


def drawn_more(number: int) -> str:
    """That outputs were drawn to find out what an engine does."""
    return f", and {number:,} to tell what it does instead" if number else ""


def small(p: float) -> str:
    """A p that is far below a level."""
    return f"{p:.1e}" if p > TINY else f"below {TINY:g}"


def _cells(subject: EngineSubject, target: SampledTarget, counts: Array) -> list[dict[str, Any]]:
    fair = target.fair
    return [
        {"text": chi_square.named(target.cells, i, subject.decode), "expected": float(fair[i] * counts.sum()),
         "observed": int(counts[i])}
        for i in range(len(counts))
    ]  # fmt: skip


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


def telling(
    subject: EngineSubject, inquiry: Inquiry, warpings: Sequence[Warping], left: Sequence[Explanation], most: int
) -> tuple[SampledTarget, int] | None:
    """Where to sample next, and how often: the fewest outputs, `most` at most, that tell the most pairs of explanations
    from each other. None if nowhere so few tell any, or if one name is left."""
    result, best = None, (0, 0)
    if len({each.name for each in left}) < 2 or most < FEWEST:
        return None
    for place in inquiry.places:
        for warping in warpings:
            target = target_of(subject, place, warping)
            if target is None:
                continue
            try:
                p = [target.under(each.sampled(warping), MARGIN[subject.config.dtype]) for each in left]
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


def explain(
    subject: EngineSubject, engine: ExaminedEngine, inquiry: Inquiry, sampled: Sequence[CountedSamples],
    explanations: Sequence[Explanation], tick: Tick,
) -> tuple[Finding, int]:  # fmt: skip
    """What the engine does instead, and how many more outputs were drawn to tell: up to MOST, where several fit.

    If no explanation fits, it is biased, and by how much.
    """
    sampled, warpings, drawn, rounds = [*sampled], [*inquiry.warpings], 0, 0
    left = fitting(sampled, explanations)
    while chosen := telling(subject, inquiry, warpings, left, MOST - drawn):
        target, number = chosen
        tqdm.write(
            f"{inquiry.name} of {engine.name}: {len(left)} explanations fit; {number:,} outputs more, at"
            f" {target.warping}, are drawn to tell them apart.",
            file=sys.stderr,
        )
        try:
            counts = draw(subject, engine, target, f"{inquiry.name}/more {rounds}", number, tick)
        except Refused:
            warpings.remove(target.warping)
            continue
        sampled.append(CountedSamples(target, counts))
        left = fitting(sampled, explanations)
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
