"""Whether sampled outputs follow the model's distribution: a chi-square test of how they begin, after several prompts.

How many samples the wanted bias needs is said before any is drawn; with fewer the verdict for it is inconclusive.
The same test must find that bias where it is planted in the engine's own outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specexp.certify import chi_square
from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, SKIPPED, Check, count
from specexp.engine_certify import bias_power
from specexp.engine_certify.engine_subject import EngineSubject, Tick
from specexp.engine_certify.explaining import CountedSamples, Inquiry, draw, drawn_more, explain
from specexp.engine_certify.findings import explanations_of, made
from specexp.engine_certify.next_tokens import Warping
from specexp.engine_certify.sampled_places import (
    PLACES,
    VARIANTS,
    SampledPlace,
    SampledTarget,
    target_of,
    values_of,
)

NAME = "samples"
LEVEL = 5e-5  # of all places together; the checks of parameters have as much
TINY = 1e-300
AMBIGUOUS = "with text alone it could not be checked, since too many outputs have the text of other tokens"
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
