"""Places in outputs at which samples are compared with the target: contexts that reveal a wrong method, and the
target's own distribution after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specexp.certify import chi_square, reference_distribution
from specexp.certify.checks import Subject, in_memory
from specexp.certify.chi_square import Cells, Prefix
from specexp.certify.work import Bench, Lost, Share
from specexp.decoding.rules import Warp
from specexp.engine.ngram_lookup import Ngrams
from specexp.engine.suffix_automaton import SuffixIndex, SuffixLengths
from specexp.evaluation.equality import entropies, noise_of, reread
from specexp.lm.model import own_text
from specexp.lm.text_drafts import TextModel

Array = Any
LENGTH = 5  # tokens of an output
PLACES = 2
TRIED = 6  # places whose cuts are examined


@dataclass(frozen=True, slots=True)
class Place:
    """The position after a prompt and the first `position` tokens of plain decoding's output."""

    prompt_id: str
    position: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The exact distribution of what follows a place, in cells. `near_cut` is True if one of its cuts is a near tie."""

    place: Place
    length: int  # tokens of an output
    cells: Cells
    near_cut: bool


@dataclass(frozen=True, slots=True)
class WorthUnit:
    """How much each position of plain decoding's output on one prompt reveals: list[float]."""

    prompt_id: str
    ids: Sequence[int]
    text: Sequence[int]
    num_runs = 0
    size = 0.0

    @property
    def title(self) -> str:
        return f"prompt '{self.prompt_id}'"

    @property
    def parts(self) -> Sequence[WorthUnit]:
        return (self,)

    def do(self, bench: Bench) -> list[float]:
        with in_memory(bench.subject):
            return _worth(bench.subject, self.prompt_id, self.ids, self.text)


@dataclass(frozen=True, slots=True)
class TargetUnit:
    """The exact distribution of what follows a place: Target."""

    place: Place
    samples: int
    num_runs = 0
    size = 0.0

    @property
    def title(self) -> str:
        return f"what follows token {self.place.position} of prompt '{self.place.prompt_id}'"

    @property
    def parts(self) -> Sequence[TargetUnit]:
        return (self,)

    def do(self, bench: Bench) -> Target:
        with in_memory(bench.subject):
            return _target(bench.subject, self.place, self.samples)


def targets_of(subject: Subject, texts: Mapping[str, Sequence[int]], samples: int, share: Share) -> list[Target | Lost]:
    """The best places; those come first whose cuts by top-k and top-p rounding cannot move. With them, what was lost
    while they were chosen."""
    result: list[Target] = []
    places = _places(subject, texts, share)
    lost = [each for each in places if isinstance(each, Lost)]
    for place in [each for each in places if isinstance(each, Place)][:TRIED]:
        if sum(not target.near_cut for target in result) == PLACES:
            break
        (made,) = share([TargetUnit(place, samples)])
        if isinstance(made, Lost):
            lost.append(made)
        else:
            result.append(made)
    return [*sorted(result, key=lambda target: target.near_cut)[:PLACES], *lost]


def _places(subject: Subject, texts: Mapping[str, Sequence[int]], share: Share) -> list[Place | Lost]:
    """The most informative window of every prompt's plain output, the best first; then others of the same outputs."""
    ranked: list[tuple[int, float, Place]] = []
    lost: list[Lost] = []
    prompts = subject.prompts()
    units = [WorthUnit(name, prompts[name], text) for name, text in texts.items()]
    for unit, worth in zip(units, share(units), strict=True):
        if isinstance(worth, Lost):
            lost.append(worth)
            continue
        name, ids, text = unit.prompt_id, unit.ids, unit.text
        fits = min(len(text) - LENGTH, _context(subject) - LENGTH - len(ids))
        windows = [sum(worth[at : at + LENGTH]) for at in range(max(1, fits + 1))]
        taken: list[int] = []
        for at in sorted(range(len(windows)), key=lambda at: -windows[at]):
            if all(abs(at - other) >= LENGTH for other in taken) and len(taken) < TRIED:
                ranked.append((len(taken), -windows[at], Place(name, at, (*ids, *text[:at]))))
                taken.append(at)
    return [*(place for _, _, place in sorted(ranked, key=lambda each: each[:2])), *lost]


def _context(subject: Subject) -> int:
    """The context that a text must fit in."""
    models = subject.prepared.pair.models
    return min(models["target"].context, models[subject.setting.decoder.models[0]].context)


def _worth(subject: Subject, name: str, ids: Sequence[int], text: Sequence[int]) -> list[float]:
    """How much each position of an output reveals: the target's entropy x how much the proposal differs from it."""
    draws = subject.draws
    logits = reread(subject.prepared.pair, draws, name, ids, text).logits
    unlike = _unlike(subject, ids, text, np.asarray(draws.warp(logits).tolist()))
    return [h * (0.1 + float(u)) for h, u in zip(entropies(draws, logits), unlike, strict=True)]


def _unlike(subject: Subject, ids: Sequence[int], text: Sequence[int], p: Array) -> Array:
    """How probably a proposal is rejected at each position; where none is made, 0, and 1 if the method makes none."""
    proposers = _proposers(subject)
    result = np.full(len(text), np.nan if proposers else 1.0)
    for name in proposers:  # of proposers that take turns, the first with something to say
        each = (
            _unlike_draft(subject, ids, text, p) if name == "draft" else _unlike_recalled(subject, name, ids, text, p)
        )
        result = np.where(np.isnan(result), each, result)
    return np.nan_to_num(result)


def _proposers(subject: Subject) -> list[str]:
    method = subject.method
    if method.proposers:
        return method.proposers.split(",")
    if method.suffix_factor or method.max_ngram:
        return ["suffix" if method.suffix_factor else "lookup"]
    return ["draft"] if {"target", "draft"} <= set(subject.setting.decoder.models) else []


def _unlike_draft(subject: Subject, ids: Sequence[int], text: Sequence[int], p: Array) -> Array:
    """The distance of what the draft model's tokens are drawn from; 1 where it scores none, or not so
    long a text."""
    draft, warp = subject.prepared.pair.models["draft"], subject.draws.warp.of_draft(subject.method.draft_temperature)
    if isinstance(draft, TextModel) or len(ids) + len(text) > draft.context:
        return np.ones(len(text))
    session = draft.session()
    if (reader := own_text(session)) is not None:
        reader.told([*ids, *text])
    rows, _ = session.feed(draft.ids([*ids, *text[:-1]]), len(text))
    return np.abs(p - np.asarray(warp(rows).tolist())).sum(axis=-1) / 2


def _unlike_recalled(subject: Subject, name: str, ids: Sequence[int], text: Sequence[int], p: Array) -> Array:
    """1 - p of the token that `suffix` or `lookup` proposes, NaN where it proposes none."""
    method = subject.method
    ngrams, suffixes = Ngrams(method.max_ngram), SuffixIndex()
    limits = SuffixLengths(1, method.suffix_factor, method.suffix_min_probability, method.min_match)
    result = np.full(len(text), np.nan)
    for at in range(len(text)):
        known = [*ids, *text[:at]]
        if name == "suffix":
            proposed = suffixes.continuation(known, limits)
        else:
            proposed = ngrams.continuation(known, 1, method.min_match)
        if proposed:
            result[at] = 1 - p[at, proposed[0]]
    return result


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
    """True if rounding could move a token across the cut of top-k or top-p."""
    ranked = np.sort(logits)[::-1]
    if warp.top_k and warp.top_k < len(ranked) and ranked[warp.top_k - 1] - ranked[warp.top_k] <= noise:
        return True
    mass = np.cumsum(np.sort(reference_distribution.warp(logits, warp.temperature, warp.top_k))[::-1])
    return warp.top_p < 1 and bool(np.abs(mass - warp.top_p).min() <= noise / warp.temperature)
