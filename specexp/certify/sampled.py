"""What a certificate finds in samples: many short outputs of the method on a person's own models, in a chi-square test
against the target's exact distribution, and a planted bias that the same test must find with as many samples.

A test starts behind a prompt and a part of plain decoding's output, where the target is unsure of what follows and the
draft, or the text that is looked up, proposes something else: elsewhere every method says the same. The level is
corrected for the number of places; the expected probabilities come from forwards over the whole text, warped in
float64. The bias is plain decoding that favours the likeliest token, by as much as moves the outputs by VARIATION.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from specexp.certify import chi_square, reference_distribution
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
from specexp.certify.chi_square import Cells, Prefix, Tested
from specexp.decoding.protocol import Role, Round, Score, Scored, Steps
from specexp.decoding.rng import TARGET, Dice, dice_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine, Request
from specexp.engine.ngram_lookup import Ngrams
from specexp.engine.request import asking
from specexp.evaluation.equality import entropies, noise_of, reread

NAME = "chi-square"
LEVEL = 0.001  # of all places together: a correct method fails once in a thousand certificates
LENGTH = 5  # tokens of an output
PLACES = 2
TRIED = 6  # places whose cuts are looked at
VARIATION = 0.15  # total variation of the planted bias
ROWS = 32  # outputs decoded together, unless the experiment says
SURELY = 0.999  # power that is called enough
MOST_SAMPLES = 1_000_000
Array = Any


@dataclass(frozen=True, slots=True)
class Place:
    """Behind a prompt and the first `position` tokens of plain decoding's output."""

    prompt_id: str
    position: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The exact distribution of what follows a place, in cells; and whether a cut of it is a near tie itself."""

    place: Place
    length: int  # tokens of an output
    cells: Cells
    near_cut: bool


@dataclass(frozen=True, slots=True)
class Tilted:
    """Plain decoding with a planted bias: at every draw the likeliest token weighs 1 + `tilt` times what it should."""

    warp: Warp
    tilt: float

    @property
    def models(self) -> tuple[Role, ...]:
        return ("target",)

    def steps(self, dice: Dice, room: int) -> Steps:
        whole = room
        while room:
            scored: Scored = yield Score("target")
            p = self.warp(scored.logits)[0]
            xp = array_namespace(p)
            favoured = xp.astype(xp.arange(p.shape[0], device=device(p)) == xp.argmax(p), p.dtype)
            token = dice.pick(p * (1 + self.tilt * favoured), whole - room, TARGET)
            room = yield Round(token[None], 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the samples of one place say."""

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
        why = "the distribution is one-hot, nothing is drawn: equality says all there is."
        return Check(NAME, SKIPPED, why)
    outcomes = []
    with in_memory(subject):
        for number, target in enumerate(_targets(subject, texts, samples)):
            try:
                counts = _sample(subject, subject.setting.decoder, target, f"method/{number}", samples, tick)
            except BREAKS as error:
                return broken(NAME, error, f"while it was sampled behind '{target.place.prompt_id}'")
            tilt = chi_square.tilt_for(target.cells, VARIATION)
            biased = _sample(subject, Tilted(subject.warp, tilt), target, f"control/{number}", samples, tick)
            fair = target.cells.probability()
            power = chi_square.power(target.cells, tilt, samples, LEVEL / PLACES)
            outcomes.append(
                Outcome(target, chi_square.compare(counts, fair), chi_square.compare(biased, fair), counts, tilt, power)
            )
    return _judged(subject, outcomes, samples)


def _sample(subject: Subject, decoder: Decoder, target: Target, salt: str, samples: int, tick: Tick) -> Array:
    """counts[C] of outputs, each with dice of its own. Caches keep the text that all of them stand behind."""
    experiment, pair = subject.prepared.experiment, subject.prepared.pair
    rows = experiment.batch if experiment.batch > 1 else ROWS
    engine = Engine(pair.models, pair.eos_ids, rows=rows, reuse=True)
    ids, length = target.place.ids, target.length
    dices = (dice_for(experiment.temperature, experiment.seed, f"{salt}/{i}") for i in range(samples))
    requests = (asking(Request(decoder, ids, length, dice)) for dice in dices)
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
    found = f"a planted bias of total variation {variation:.2g} {{}} (p {control:.1e})"
    if p < LEVEL:
        worst = min(outcomes, key=lambda each: each.tested.p)
        words = f"{where} do not follow the target: p {p:.1e} is below {LEVEL:g}. {_told(subject, worst, samples)}"
        return Check(NAME, FAILED, words, numbers, details)
    if control < LEVEL:
        words = f"{where} follow the target: p {p:.2g}, level {LEVEL:g}; {found.format('is found')}."
        return Check(NAME, PASSED, words, numbers, details)
    words = (
        f"{where} show no bias (p {p:.2g}), but {found.format('is not found either')}, so that says nothing."
        f" {_way_out(outcomes)}"
    )
    return Check(NAME, INCONCLUSIVE, words, numbers, details)


def _variation(each: Outcome) -> float:
    cells = each.target.cells
    return chi_square.distance(cells.probability(each.tilt), cells.probability())


def _way_out(outcomes: Sequence[Outcome]) -> str:
    """How many samples would do, if any number does."""
    number = 100
    while number <= MOST_SAMPLES:
        if any(chi_square.power(o.target.cells, o.tilt, number, LEVEL / PLACES) > SURELY for o in outcomes):
            return f"Give samples={number}."
        number = -(-number * 5 // 4 // 100) * 100 + 100
    return "The target is too sure of its tokens at these settings for any bias: raise temperature or top_p."


def _told(subject: Subject, each: Outcome, samples: int) -> str:
    """Where the counts stray most, in words."""
    cell = each.tested.worst
    expected = samples * float(each.target.cells.probability()[cell])
    name = chi_square.named(each.target.cells, cell, subject.decode)
    place = each.target.place
    return (
        f"Behind prompt '{place.prompt_id}' and {count(place.position, 'token')}, {name} came {int(each.counts[cell])}"
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


def _targets(subject: Subject, texts: Sequence[Sequence[int]], samples: int) -> list[Target]:
    """The best places, those first whose cuts by top-k and top-p rounding cannot move."""
    found: list[Target] = []
    for place in _places(subject, texts)[:TRIED]:
        if sum(not target.near_cut for target in found) == PLACES:
            break
        found.append(_target(subject, place, samples))
    return sorted(found, key=lambda target: target.near_cut)[:PLACES]


def _places(subject: Subject, texts: Sequence[Sequence[int]]) -> list[Place]:
    """The most telling window of every prompt's plain output, the best first; then others of the same outputs."""
    ranked: list[tuple[int, float, Place]] = []
    for (name, ids), text in zip(subject.prompts().items(), texts, strict=True):
        worth = _worth(subject, name, ids, text)
        fits = min(len(text) - LENGTH, _context(subject) - LENGTH - len(ids))
        windows = [sum(worth[at : at + LENGTH]) for at in range(max(1, fits + 1))]
        taken: list[int] = []
        for at in sorted(range(len(windows)), key=lambda at: -windows[at]):
            if all(abs(at - other) >= LENGTH for other in taken) and len(taken) < TRIED:
                ranked.append((len(taken), -windows[at], Place(name, at, (*ids, *text[:at]))))
                taken.append(at)
    return [place for _, _, place in sorted(ranked, key=lambda each: each[:2])]


def _context(subject: Subject) -> int:
    """Of the model that a text must fit."""
    models = subject.prepared.pair.models
    return min(models["target"].context, models[subject.setting.decoder.models[0]].context)


def _worth(subject: Subject, name: str, ids: Sequence[int], text: Sequence[int]) -> list[float]:
    """How much each position of an output tells: the target's entropy x how unlike it the proposal is."""
    draws, models = subject.draws, subject.prepared.pair.models
    logits = reread(subject.prepared.pair, draws, name, ids, text).logits
    p = np.asarray(draws.warp(logits).tolist())
    unlike = np.ones(len(text))
    if subject.method.method == "lookup":
        unlike = _unlike_lookup(subject, ids, text, p)
    elif {"target", "draft"} <= set(subject.setting.decoder.models) and len(ids) + len(text) <= models["draft"].context:
        rows, _ = models["draft"].session().feed(models["draft"].ids([*ids, *text[:-1]]), len(text))
        unlike = np.abs(p - np.asarray(draws.warp(rows).tolist())).sum(axis=-1) / 2
    return [h * (0.1 + float(u)) for h, u in zip(entropies(draws, logits), unlike, strict=True)]


def _unlike_lookup(subject: Subject, ids: Sequence[int], text: Sequence[int], p: Array) -> Array:
    """1 - p of the token that is looked up at each position, 0 where none is found."""
    known = Ngrams(subject.method.max_ngram)
    found = np.zeros(len(text))
    for at in range(len(text)):
        proposed = known.continuation([*ids, *text[:at]], 1)
        if proposed:
            found[at] = 1 - p[at, proposed[0]]
    return found


def _target(subject: Subject, place: Place, samples: int) -> Target:
    """The exact distribution of what follows a place."""
    pair, warp = subject.prepared.pair, subject.warp
    near: list[bool] = []

    def row(prefix: Prefix) -> Array:
        (logits,) = reference_distribution.logits_behind(pair.models["target"], [*place.ids, *prefix], 1)
        near.append(_near_cut(logits, warp, noise_of(subject.arithmetic, logits)))
        return reference_distribution.warp(logits, warp.temperature, warp.top_k, warp.top_p)

    length = min(LENGTH, _context(subject) - len(place.ids))
    return Target(place, length, chi_square.split(row, length, pair.eos_ids, samples), any(near))


def _near_cut(logits: Array, warp: Warp, noise: float) -> bool:
    """Whether rounding could move a token across the cut of top-k or top-p."""
    ranked = np.sort(logits)[::-1]
    if warp.top_k and warp.top_k < len(ranked) and ranked[warp.top_k - 1] - ranked[warp.top_k] <= noise:
        return True
    mass = np.cumsum(np.sort(reference_distribution.warp(logits, warp.temperature, warp.top_k))[::-1])
    return warp.top_p < 1 and bool(np.abs(mass - warp.top_p).min() <= noise / warp.temperature)
