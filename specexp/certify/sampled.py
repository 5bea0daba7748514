"""The check of a certificate by samples: many short outputs of the method on the user's own models, in a chi-square
test against the target's exact distribution, and a planted bias that the same test must detect with as many samples.

A test starts after a prompt and a part of plain decoding's output, where the target is unsure of what follows and the
draft, or the text that is looked up, proposes something else: elsewhere every method emits the same. The level is
corrected for the number of places; the expected probabilities come from forwards over the whole text, warped in
float64. The bias is plain decoding that favours the likeliest token, just enough to move the outputs by VARIATION.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from specexp.certify import chi_square
from specexp.certify.checks import (
    BREAKS,
    FAILED,
    INCONCLUSIVE,
    PASSED,
    SKIPPED,
    Check,
    Subject,
    count,
    in_memory,
)
from specexp.certify.chi_square import Tested
from specexp.certify.places import (
    LENGTH,
    PLACES,
    Target,
    targets_of,
)
from specexp.certify.work import Bench, Broken, Lost, Share, failure, without
from specexp.decoding.protocol import Role, Round, Score, Scored, Steps
from specexp.decoding.rng import TARGET, Rng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Request
from specexp.engine.request import single_request

NAME = "chi-square"
LEVEL = 0.001  # of all places together: a correct method fails once in a thousand certificates
VARIATION = 0.15  # total variation of the planted bias
ROWS = 32  # outputs decoded together, unless the experiment sets it
WAVES = 4  # times that many are one unit of work
SURELY = 0.999  # power that counts as enough
MOST_SAMPLES = 1_000_000
Array = Any


@dataclass(frozen=True, slots=True)
class Tilted:
    """Plain decoding with a planted bias: at every draw the likeliest token weighs 1 + `tilt` times what it should."""

    warp: Warp
    tilt: float

    @property
    def models(self) -> tuple[Role, ...]:
        return ("target",)

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        limit = remaining_tokens
        while remaining_tokens:
            scored: Scored = yield Score("target")
            p = self.warp(scored.logits)[0]
            xp = array_namespace(p)
            favoured = xp.astype(xp.arange(p.shape[0], device=device(p)) == xp.argmax(p), p.dtype)
            token = rng.pick(p * (1 + self.tilt * favoured), limit - remaining_tokens, TARGET)
            remaining_tokens = yield Round(token[None], 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The test results of one place."""

    target: Target
    tested: Tested
    control: Tested
    counts: Array
    tilt: float
    power: float


def num_ticks(subject: Subject, samples: int) -> int:
    return 0 if subject.certain else 2 * PLACES * samples


@dataclass(frozen=True, slots=True)
class SampleUnit:
    """Draws some of a place's samples: counts[C]. With a `tilt`, of plain decoding with that bias, else of the method.

    `salt` and its number give each sample an rng of its own.
    """

    target: Target
    salt: str
    numbers: range
    rows: int
    tilt: float | None = None

    @property
    def title(self) -> str:
        place = self.target.place
        first, last = self.numbers[0] + 1, self.numbers[-1] + 1
        return f"samples {first} to {last} after {count(place.position, 'token')} of prompt '{place.prompt_id}'"

    @property
    def num_runs(self) -> int:
        return len(self.numbers)

    @property
    def size(self) -> float:
        return float(len(self.numbers))

    @property
    def parts(self) -> Sequence[SampleUnit]:
        return (self,)

    def do(self, bench: Bench) -> Array | Broken:
        """The caches keep the text that all outputs follow."""
        subject, target = bench.subject, self.target
        experiment = subject.prepared.experiment
        decoder = subject.setting.decoder if self.tilt is None else Tilted(subject.warp, self.tilt)
        engine = bench.engine((self.salt, target.place), self.rows, reuse=True)
        rngs = (rng_for(experiment.temperature, experiment.seed, f"{self.salt}/{i}") for i in self.numbers)
        requests = (single_request(Request(decoder, target.place.ids, target.length, rng)) for rng in rngs)
        counts = np.zeros(len(target.cells.names), dtype=int)
        try:
            with in_memory(subject):
                for _, out in engine.run_all(requests, fresh=False):
                    counts[target.cells.of(out.token_ids)] += 1
        except BREAKS as error:
            if self.tilt is not None:
                raise
            return bench.broken(error)
        return counts


def check_samples(
    subject: Subject, texts: Mapping[str, Sequence[int]], samples: int, share: Share, lost: Sequence[Lost] = ()
) -> Check:
    """Sample the method and the planted bias at the same places, and test both."""
    if subject.certain:
        why = "the distribution is one-hot, nothing is drawn: the check of equality covers it."
        return Check(NAME, SKIPPED, why)
    chosen = targets_of(subject, texts, samples, share)
    targets = [each for each in chosen if isinstance(each, Target)]
    gone = [*lost, *(each for each in chosen if isinstance(each, Lost))]
    tilts = [chi_square.tilt_for(target.cells, VARIATION) for target in targets]
    rows = subject.prepared.experiment.batch
    rows = rows if rows > 1 else ROWS
    units: list[SampleUnit] = []
    for number, (target, tilt) in enumerate(zip(targets, tilts, strict=True)):
        for salt, bias in ((f"method/{number}", None), (f"control/{number}", tilt)):
            for start in range(0, samples, WAVES * rows):
                some = range(start, min(samples, start + WAVES * rows))
                units.append(SampleUnit(target, salt, some, rows, bias))
    counts: dict[str, Array] = {}
    for unit, result in zip(units, list(share(units)), strict=True):
        if isinstance(result, Broken):
            return failure(NAME, result, f"while it was sampled after '{unit.target.place.prompt_id}'")
        if isinstance(result, Lost):
            gone.append(result)
        else:
            counts[unit.salt] = counts.get(unit.salt, 0) + result
    if not targets or any(isinstance(each, Lost) and each not in lost for each in gone):
        return without(Check(NAME, INCONCLUSIVE, "not all samples could be drawn."), gone)
    outcomes = []
    for number, (target, tilt) in enumerate(zip(targets, tilts, strict=True)):
        fair = target.cells.probability()
        drawn, biased = (chi_square.compare(counts[f"{kind}/{number}"], fair) for kind in ("method", "control"))
        power = chi_square.power(target.cells, tilt, samples, LEVEL / PLACES)
        outcomes.append(Outcome(target, drawn, biased, counts[f"method/{number}"], tilt, power))
    return without(_judged(subject, outcomes, samples), lost)


def _judged(subject: Subject, outcomes: Sequence[Outcome], samples: int) -> Check:
    p = chi_square.bonferroni([each.tested.p for each in outcomes])
    control = chi_square.bonferroni([each.control.p for each in outcomes])
    powers = [each.power for each in outcomes]
    variation = max(_variation(each) for each in outcomes)
    numbers = {
        "samples": samples, "places": len(outcomes), "tokens": LENGTH, "level": LEVEL, "p": p, "control_p": control,
        "control_variation": variation, "power": max(powers),
    }  # fmt: skip
    details = {"places": [_as_json(subject, each, samples) for each in outcomes]}
    where = f"{samples:,} outputs of {LENGTH} tokens at each of {count(len(outcomes), 'place')}"
    planted = f"a planted bias of total variation {variation:.2g} is {{}} (p {control:.1e})"
    if p < LEVEL:
        worst = min(outcomes, key=lambda each: each.tested.p)
        words = f"{where} do not follow the target's distribution: p {p:.1e} is below {LEVEL:g}."
        words += f" {_told(subject, worst, samples)}"
        return Check(NAME, FAILED, words, numbers, details)
    if control < LEVEL:
        words = f"{where} follow the target's distribution: p {p:.2g}, level {LEVEL:g}; {planted.format('detected')}."
        return Check(NAME, PASSED, words, numbers, details)
    words = (
        f"{where} show no bias (p {p:.2g}), but {planted.format('not detected either')}: the test has too little power."
        f" {_way_out(outcomes)}"
    )
    return Check(NAME, INCONCLUSIVE, words, numbers, details)


def _variation(each: Outcome) -> float:
    cells = each.target.cells
    return chi_square.distance(cells.probability(each.tilt), cells.probability())


def _way_out(outcomes: Sequence[Outcome]) -> str:
    """Advice on how many samples are enough, if any number is."""
    number = 100
    while number <= MOST_SAMPLES:
        if any(chi_square.power(o.target.cells, o.tilt, number, LEVEL / PLACES) > SURELY for o in outcomes):
            return f"Give samples={number}."
        number = -(-number * 5 // 4 // 100) * 100 + 100
    return "The target is too sure of its tokens at these settings for any bias: raise temperature or top_p."


def _told(subject: Subject, each: Outcome, samples: int) -> str:
    """Where the counts deviate most, as readable text."""
    cell = each.tested.worst
    expected = samples * float(each.target.cells.probability()[cell])
    name = chi_square.named(each.target.cells, cell, subject.decode)
    place = each.target.place
    return (
        f"After prompt '{place.prompt_id}' and {count(place.position, 'token')}, {name} came {int(each.counts[cell])}"
        f" times; {expected:.1f} are expected."
    )


def _as_json(subject: Subject, each: Outcome, samples: int) -> dict[str, Any]:
    cells = each.target.cells
    fair = cells.probability()
    return {
        "prompt_id": each.target.place.prompt_id,
        "position": each.target.place.position,
        "near_cut": each.target.near_cut,
        "statistic": each.tested.statistic,
        "degrees": each.tested.degrees,
        "p": each.tested.p,
        "control_p": each.control.p,
        "control_variation": _variation(each),
        "tilt": each.tilt,
        "power": each.power,
        "cells": [
            {"begins": list(prefix), "text": chi_square.named(cells, i, subject.decode), "others": other,
             "expected": samples * float(fair[i]), "observed": int(each.counts[i])}
            for i, (prefix, other) in enumerate(cells.names)
        ],
    }  # fmt: skip
