"""Where a served engine is sampled: after which prompt and how much of plain decoding's output, and into which cells.

A place is worth as much as the entropy of the tokens that follow it: where a model is sure, all engines emit the same.
The cells are the beginnings of outputs, as in `specexp.certify.chi_square`, none rarer than one output in twenty: then
few samples find a bias, and the chi-square distribution holds far out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specexp.certify import chi_square
from specexp.certify.chi_square import Cells, Prefix
from specexp.engine_certify import divergences, next_tokens
from specexp.engine_certify.engine_subject import NUM_TOP, EngineRequest, EngineSubject, Tick
from specexp.engine_certify.greedy_checks import GreedyOutputs
from specexp.engine_certify.next_tokens import NextTokens, Rows, Unknowable, Warping
from specexp.engine_certify.served_output import ServedOutput
from specexp.engines.body import Sampling

Array = np.ndarray[Any, Any]
LENGTH = 5  # tokens of a sample that are compared
MORE = 4  # tokens more where a text is turned into tokens, since a cut word may be split otherwise
PLACES = 2
TRIED = 6
PROMPTS = 8  # whose outputs are searched for places
FAR = 24  # tokens of an output up to which places are
_CELLS = 100  # samples for which cells are made: of 5 and more each
UNSEEN = 0.5  # of chi-square, that splitting texts may add
LOOKED_AT, FOLLOWED = 2e-4, 0.01  # shares of outputs whose tokens are split again, and whose next tokens are
# How far cuts must be from the tokens next to them, by what the engine computes in.
MARGIN = {"float64": 1e-4, "float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}
TEMPERATURE, TOP_P, TOP_K, MIN_P = "temperature", "top-p", "top-k", "min-p"
# Where few tokens are likely, and these alike, only much lower or higher temperatures change what is sampled.
COLDEST, COLD, HOT = 0.2, 0.5, 2.0
# The values with which each parameter may be checked.
VARIANTS: dict[str, tuple[Warping, ...]] = {
    TEMPERATURE: (Warping(COLD), Warping(COLDEST), Warping(HOT)),
    TOP_P: tuple(Warping(COLD, top_p=top_p) for top_p in (0.9, 0.8, 0.7, 0.6, 0.5)),
    TOP_K: tuple(Warping(1.0, top_k=top_k) for top_k in (2, 3, 5)),
    MIN_P: tuple(Warping(1.0, min_p=min_p) for min_p in (0.2, 0.1, 0.3, 0.5, 0.7)),
}
_MOST_ROUNDING = MARGIN["bfloat16"] / COLD  # rounding of logits counts the more, the lower the temperature is


@dataclass(frozen=True, slots=True)
class SampledPlace:
    """What follows a prompt and the first tokens of plain decoding's output."""

    prompt: int
    after: Prefix
    rows: Rows


@dataclass(frozen=True, slots=True)
class SampledTarget:
    """The exact distribution of what follows a place where outputs are sampled like this, in cells.

    `moved` is the share of outputs whose texts are split into other tokens than they were emitted as.
    """

    place: SampledPlace
    warping: Warping
    cells: Cells
    moved: float = 0.0

    def tells(self, samples: int) -> bool:
        """True if so many outputs would not show what splitting texts moves from one cell to another."""
        if not self.moved:
            return True
        least = float(self.fair.min())
        # In a cell that expects few outputs, or none at all, a single one shows.
        return samples * least >= chi_square.LEAST_EXPECTED and samples * self.moved**2 / least < UNSEEN

    @property
    def fair(self) -> Array:
        return self.cells.probability()

    def under(self, warping: Warping, margin: float = 0.0) -> Array:
        """Probability[C] of each cell if outputs are sampled otherwise. Raises Unknowable, also where a cut is closer
        than `margin` to the tokens next to it."""

        def row(prefix: Prefix) -> Array:
            given = self.place.rows(prefix)
            if margin and given.margin(warping) < margin:
                raise Unknowable
            return given.warped(warping)

        return self.cells.under(row)

    def counts(self, outputs: Sequence[ServedOutput]) -> Array:
        """How many outputs are in each cell."""
        result = np.zeros(len(self.cells.names), dtype=int)
        for output in outputs:
            assert output.tokens is not None, "an output has no tokens"
            result[self.cells.of(output.tokens[:LENGTH])] += 1
        return result


def places_of(subject: EngineSubject, outputs: GreedyOutputs, tick: Tick) -> list[SampledPlace]:
    """Places, the best first: the best one of each prompt, then the next ones."""
    ranked: list[tuple[int, float, SampledPlace]] = []
    anywhere = all(engine.by_ids for engine in subject.engines)
    warping = Warping(subject.prepared.experiment.temperature or 1.0)
    plain = outputs.of(subject.engines[-1])
    for prompt in range(min(PROMPTS, len(plain))):
        tokens = plain[prompt].tokens
        if tokens is None:
            continue
        rows = _rows_along(subject, prompt, tokens[: FAR + LENGTH], tick)
        worth = [_entropy(row, warping) for row in rows]
        starts = range(max(1, min(FAR, len(worth) - LENGTH))) if anywhere else range(1)
        windows = {at: sum(worth[at : at + LENGTH]) for at in starts}
        taken: list[int] = []
        for at in sorted(windows, key=lambda at: -windows[at]):
            if all(abs(at - other) >= LENGTH for other in taken) and len(taken) < TRIED:
                after = tuple(tokens[:at])
                ranked.append((len(taken), -windows[at], SampledPlace(prompt, after, subject.rows(prompt, after))))
                taken.append(at)
    return [place for _, _, place in sorted(ranked, key=lambda each: each[:2])][:TRIED]


def _rows_along(subject: EngineSubject, prompt: int, tokens: Prefix, tick: Tick) -> list[NextTokens]:
    """The distributions along an output: by one forward of the weights, or by one answer with log-probabilities."""
    target, ids = subject.target, subject.ids
    if target is not None and ids is not None:
        return divergences.rows_along(subject, target, prompt, tokens)
    scoring = subject.scoring()
    assert scoring is not None, "no distribution is known"
    request = EngineRequest(("along", prompt), prompt, Sampling(FAR + LENGTH), (), NUM_TOP)
    (output,) = subject.ask(scoring, [request], tick)
    return [next_tokens.of_top(each) for each in output.top]


def _entropy(row: NextTokens, warping: Warping) -> float:
    """Entropy in nats, as far as the tokens are known."""
    try:
        p = row.warped(warping)
    except Unknowable:
        p = row.warped(Warping())
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def values_of(name: str, dtype: str) -> list[Warping]:
    """The values with which a parameter of an engine that computes in this dtype may be checked."""
    return [each for each in VARIANTS[name] if MARGIN[dtype] <= _MOST_ROUNDING * each.temperature]


def target_of(subject: EngineSubject, place: SampledPlace, warping: Warping) -> SampledTarget | None:
    """The cells of a place; None if rounding may move a token across a cut, or if the distribution is not known."""
    margin = MARGIN[subject.config.dtype]
    near = False

    def row(prefix: Prefix) -> Array:
        nonlocal near
        given = place.rows(prefix)
        near = near or given.margin(warping) < margin
        return given.warped(warping)

    try:
        cells = chi_square.split(row, LENGTH, subject.ends, _CELLS)
    except Unknowable:
        return None
    if near or len(cells.names) < 2:
        return None
    return SampledTarget(place, warping, cells, moved_by_text(subject, place, warping) if subject.by_text else 0.0)


def moved_by_text(subject: EngineSubject, place: SampledPlace, warping: Warping) -> float:
    """The share of outputs whose first tokens are others when a tokenizer makes them of their text.

    Of tokens that few outputs have, no more is looked at.
    """
    moved = 0.0
    todo: list[tuple[Prefix, float]] = [((), 1.0)]
    while todo:
        prefix, mass = todo.pop()
        p = mass * place.rows(prefix).warped(warping)
        for token in np.flatnonzero(p >= LOOKED_AT).tolist():
            behind = (*prefix, token)
            if token in subject.ends:
                continue
            if subject.split(place.prompt, place.after, subject.prepared.pair.text.decode(behind)) != list(behind):
                moved += float(p[token])
            elif len(behind) < LENGTH and p[token] >= FOLLOWED:
                todo.append((behind, float(p[token])))
    return moved


def sampling_of(warping: Warping, seed: int | None, tokens_given: bool) -> Sampling:
    """A request for one sample."""
    return Sampling(
        LENGTH if tokens_given else LENGTH + MORE,
        warping.temperature,
        warping.top_k,
        warping.top_p,
        warping.min_p,
        seed,
    )
