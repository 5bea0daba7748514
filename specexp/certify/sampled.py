"""The check of a certificate by samples: many short outputs of the method on the user's own models, in a chi-square
test against the target's exact distribution, and a planted bias that the same test must detect with as many samples.

A test starts after a prompt and a part of plain decoding's output, where the target is unsure of what follows and the
draft, or the text that is looked up, proposes something else: elsewhere every method emits the same. The level is
corrected for the number of places; the expected probabilities come from forwards over the whole text, warped in
float64. The bias is plain decoding that favours the likeliest token, just enough to move the outputs by VARIATION.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    Tick,
    broken,
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
from specexp.decoding.protocol import Role, Round, Score, Scored, Steps
from specexp.decoding.rng import TARGET, Rng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine, Request
from specexp.engine.request import single_request

NAME = "chi-square"
LEVEL = 0.001  # of all places together: a correct method fails once in a thousand certificates
VARIATION = 0.15  # total variation of the planted bias
ROWS = 32  # outputs decoded together, unless the experiment sets it
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


def check_samples(subject: Subject, texts: Sequence[Sequence[int]], samples: int, tick: Tick) -> Check:
    """Sample the method and the planted bias at the same places, and test both."""
    if subject.certain:
        why = "the distribution is one-hot, nothing is drawn: the check of equality covers it."
        return Check(NAME, SKIPPED, why)
    outcomes = []
    with in_memory(subject):
        for number, target in enumerate(targets_of(subject, texts, samples)):
            try:
                counts = _sample(subject, subject.setting.decoder, target, f"method/{number}", samples, tick)
            except BREAKS as error:
                return broken(NAME, error, f"while it was sampled after '{target.place.prompt_id}'")
            tilt = chi_square.tilt_for(target.cells, VARIATION)
            biased = _sample(subject, Tilted(subject.warp, tilt), target, f"control/{number}", samples, tick)
            fair = target.cells.probability()
            power = chi_square.power(target.cells, tilt, samples, LEVEL / PLACES)
            outcomes.append(
                Outcome(target, chi_square.compare(counts, fair), chi_square.compare(biased, fair), counts, tilt, power)
            )
    return _judged(subject, outcomes, samples)


def _sample(subject: Subject, decoder: Decoder, target: Target, salt: str, samples: int, tick: Tick) -> Array:
    """counts[C] of outputs, each with its own rng. The caches keep the text that all outputs follow."""
    experiment, pair = subject.prepared.experiment, subject.prepared.pair
    rows = experiment.batch if experiment.batch > 1 else ROWS
    engine = Engine(pair.models, pair.eos_ids, max_batch_size=rows, reuse=True)
    ids, length = target.place.ids, target.length
    rngs = (rng_for(experiment.temperature, experiment.seed, f"{salt}/{i}") for i in range(samples))
    requests = (single_request(Request(decoder, ids, length, rng)) for rng in rngs)
    counts = np.zeros(len(target.cells.names), dtype=int)
    for _, out in engine.run_all(requests, fresh=False):
        counts[target.cells.of(out.token_ids)] += 1
        tick()
    return counts


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


# Where a test starts.
