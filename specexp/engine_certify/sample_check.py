"""Whether sampled outputs follow the model's distribution: a chi-square test of how they begin, after several prompts.

How many samples the wanted bias needs is said before any is drawn; with fewer the verdict for it is inconclusive.
The same test must find that bias where it is planted in the engine's own outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specexp.certify import chi_square
from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, SKIPPED, Check, count
from specexp.engine_certify import bias_power, findings
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject, ExaminedEngine, Tick
from specexp.engine_certify.findings import Finding, made
from specexp.engine_certify.next_tokens import Unknowable, Warping
from specexp.engine_certify.sampled_places import PLACES, SampledPlace, SampledTarget, sampling_of, target_of
from specexp.engines.body import Sampling

NAME = "samples"
LEVEL = 5e-5  # of all places together; the checks of parameters have as much
FIT = 1e-4  # an explanation fits unless a test rejects it at this level
CONFIDENCE = 1e-3  # with which a bias is at least as large as it is said to be
TINY = 1e-300
AMBIGUOUS = "with text alone it could not be checked, since too many outputs have the text of other tokens"
# What servers do where a request is silent, if they do not let it say that it wants nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama.cpp": {"top_k": 40, "top_p": 0.95, "min_p": 0.05}, "transformers": {"top_k": 50},
}  # fmt: skip
_ALIKE = 1e-6  # log-likelihoods that are this close are those of the same probabilities
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What is sampled, and how many outputs at each place; empty targets say that nothing can be."""

    targets: Sequence[SampledTarget]
    needed: int  # samples at each place that the wanted bias needs
    samples: int
    ambiguous: bool = False  # that a place was left out, since texts do not tell the tokens there


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
    return SamplingPlan(targets, needed, samples)


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
        found = explain(planned.targets, counts, alternatives_of(warping_of(subject)))
        words = f"{where}: p {small(min(adjusted))} is below {LEVEL:g}. {found.sentence}"
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


Alternative = tuple[str, Warping, str]  # its name as a finding, how outputs are then sampled, and a sentence


def alternatives_of(warping: Warping) -> list[Alternative]:
    """What an engine may do instead of sampling like this."""
    temperature, top_p = warping.temperature, warping.top_p
    result: list[Alternative] = []

    def add(name: str, sentence: str, **changed: Any) -> None:
        parts = {
            "temperature": temperature, "top_k": warping.top_k, "top_p": top_p, "min_p": warping.min_p, **changed
        }  # fmt: skip
        result.append((name, Warping(**parts), sentence))

    if temperature != 1:
        add(
            findings.TEMPERATURE_IGNORED,
            f"the temperature is ignored: outputs at {temperature:g} are those at 1.",
            temperature=1.0,
        )
    if top_p < 1:
        add(findings.TOP_P_IGNORED, f"top-p is ignored: outputs at {top_p:g} are those without it.", top_p=1.0)
    if top_p < 1 and temperature != 1:
        add(
            findings.TOP_P_FIRST,
            f"top-p is applied before the temperature: outputs at {warping} have the tokens of that order.",
            top_p_first=True,
        )
    if warping.top_k:
        add(findings.TOP_K_IGNORED, f"top-k is ignored: outputs at {warping.top_k} are those without it.", top_k=0)
    if warping.min_p:
        add(findings.MIN_P_IGNORED, f"min-p is ignored: outputs at {warping.min_p:g} are those without it.", min_p=0.0)
    for server, default in DEFAULTS.items():
        silent = {name: value for name, value in default.items() if getattr(warping, name) == getattr(Warping(), name)}
        if silent:
            words = " and ".join(f"{name.replace('_', '-')} {value:g}" for name, value in silent.items())
            sentence = f"it samples with {words} where the request sets none, as {server} does."
            add(findings.DEFAULTS, sentence, **silent)
    add(
        findings.GREEDY_ABOVE,
        f"it is greedy above a temperature: all outputs at {temperature:g} are the greedy one.",
        temperature=0.0,
    )
    return result


def explain(targets: Sequence[SampledTarget], counts: Sequence[Array], alternatives: Sequence[Alternative]) -> Finding:
    """What the engine does instead: of the alternatives that fit at all places, the likeliest; else that it is biased,
    and by how much. If several make the same outputs likely here, the first names it and all are told."""
    fitting: list[tuple[float, Finding]] = []
    for name, warping, sentence in alternatives:
        try:
            probabilities = [target.under(warping) for target in targets]
        except Unknowable:
            continue
        both = list(zip(counts, probabilities, strict=True))
        if all(bias_power.fits(each, p, FIT) for each, p in both):
            fitting.append((sum(bias_power.likelihood(each, p) for each, p in both), Finding(name, sentence)))
    if fitting:
        best = max(likelihood for likelihood, _ in fitting)
        first, *alike = [each for likelihood, each in fitting if likelihood > best - _ALIKE]
        if not alike:
            return first
        others = " Or ".join(each.sentence for each in alike)
        return Finding(first.name, f"{first.sentence} Or {others} Outputs here are the same by all of these.")
    least = max(
        bias_power.at_least(target.cells, each, target.fair, CONFIDENCE / len(targets))
        for target, each in zip(targets, counts, strict=True)
    )
    # A bias need not show in any single beginning, though all of them together tell it.
    size = f"by at least {least:.2g} of total variation" if least > 0 else "by a little"
    return Finding(findings.BIASED, f"sampling is biased {size}.")
