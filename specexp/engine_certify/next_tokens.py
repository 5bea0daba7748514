"""The distribution of the next token, from weights or from a server's log-probabilities, and how a request warps it.

A server names its likeliest tokens only, before any warping: the mass of all others is known, but not what each has.
They are pooled. Where that is not enough for a warped distribution, `Unknowable` is raised.

Shapes: V is the number of token ids that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specexp.certify import reference_distribution
from specexp.certify.chi_square import Prefix
from specexp.lm.model import Model

Array = np.ndarray[Any, Any]
TOLERATED = 0.002  # share of a distribution that may be uncertain


class Unknowable(Exception):
    """The likeliest tokens alone do not tell the warped distribution."""


@dataclass(frozen=True, slots=True)
class Warping:
    """How logits become the distribution that is sampled: temperature, min-p, top-k, top-p, in this order.

    With `top_p_first`, top-p is applied before the temperature, which some engines do.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_p_first: bool = False

    def __str__(self) -> str:
        words = f"temperature {self.temperature:g}"
        words += f", top-k {self.top_k}" if self.top_k else ""
        words += f", top-p {self.top_p:g}" if self.top_p < 1 else ""
        return words + (f", min-p {self.min_p:g}" if self.min_p else "")


@dataclass(frozen=True, slots=True)
class NextTokens:
    """Log-probabilities[V] of the next token, -inf where not known; `rest` is the mass of all that are not known."""

    logprobs: Array
    rest: float = 0.0

    def warped(self, warping: Warping) -> Array:
        """Probabilities[V]; they sum to less than 1 where `rest` remains. Raises Unknowable."""
        if warping.top_p_first:
            first = self.warped(Warping(1.0, top_p=warping.top_p))
            nucleus = NextTokens(np.where(first > 0, self.logprobs, -np.inf), 0.0 if warping.top_p < 1 else self.rest)
            return nucleus.warped(replace(warping, top_p=1.0, top_p_first=False))
        result = np.zeros(len(self.logprobs))
        order = np.argsort(-self.logprobs, kind="stable")
        if warping.temperature == 0:
            result[order[0]] = 1.0
            return result
        highest = float(self.logprobs[order[0]])
        weights = np.exp((self.logprobs - highest) / warping.temperature)
        known = int(np.isfinite(self.logprobs).sum())
        kept, rest = order[:known], self._rest(warping.temperature, highest)
        if warping.min_p:
            kept = kept[weights[kept] >= warping.min_p]
            if rest and len(kept) == known:
                raise Unknowable
            rest = 0.0
        if warping.top_k and (warping.top_k <= len(kept) or not rest):
            kept, rest = kept[: warping.top_k], 0.0
        elif warping.top_k or (rest and warping.temperature > 1):
            raise Unknowable
        p = weights[kept] / (weights[kept].sum() + rest)
        if warping.top_p < 1:
            before = np.concatenate([[0.0], np.cumsum(p)[:-1]])
            if rest and p.sum() < warping.top_p:
                raise Unknowable
            kept, p = kept[before < warping.top_p], p[before < warping.top_p]
            p = p / p.sum()
        result[kept] = p
        return result

    def _rest(self, temperature: float, highest: float) -> float:
        """The weight of the tokens that are not known, in units of the likeliest one's."""
        if not self.rest:
            return 0.0
        if temperature == 1:
            return self.rest * float(np.exp(-highest))
        least = float(self.logprobs[np.isfinite(self.logprobs)].min())
        # None of them has more than the least known one, so that together they have at most this.
        most = self.rest * float(np.exp(least * (1 / temperature - 1) - highest / temperature))
        if temperature < 1 and most > 2 * TOLERATED:
            raise Unknowable
        return most / 2

    def margin(self, warping: Warping) -> float:
        """How far the cuts of top-k, top-p and min-p are from the tokens next to them: in probability, or in logits."""
        result = np.inf
        ranked = np.sort(self.logprobs[np.isfinite(self.logprobs)])[::-1]
        if warping.temperature == 0:
            return float(ranked[0] - ranked[1]) if len(ranked) > 1 else result
        if warping.top_k and warping.top_k < len(ranked):
            result = min(result, float(ranked[warping.top_k - 1] - ranked[warping.top_k]))
        if warping.min_p:
            below = (ranked - ranked[0]) / warping.temperature - np.log(warping.min_p)
            result = min(result, float(np.abs(below).min()))
        if warping.top_p < 1:
            for each in {warping.temperature, 1.0 if warping.top_p_first else warping.temperature}:
                mass = np.cumsum(np.sort(self.warped(replace(warping, temperature=each, top_p=1.0,
                                                             top_p_first=False)))[::-1])  # fmt: skip
                result = min(result, float(np.abs(mass - warping.top_p).min()))
        return result


Rows = Callable[[Prefix], NextTokens]


def of_weights(model: Model, ids: Sequence[int], ends: Sequence[int]) -> Rows:
    """Rows after a prompt's `ids`, each from one forward over the whole text; all `ends` count as the first of them."""
    known: dict[Prefix, NextTokens] = {}

    def row(prefix: Prefix) -> NextTokens:
        if prefix not in known:
            (logits,) = reference_distribution.logits_behind(model, [*ids, *prefix], 1)
            known[prefix] = of_logits(logits, ends)
        return known[prefix]

    return row


def of_logits(logits: Array, ends: Sequence[int]) -> NextTokens:
    """One row of logits[V] as log-probabilities, with all `ends` as the first of them."""
    with np.errstate(divide="ignore"):
        logprobs = logits - logits.max()
        logprobs = logprobs - np.log(np.exp(logprobs).sum())
        if len(ends) > 1:
            logprobs[ends[0]] = np.log(np.exp(logprobs[list(ends)]).sum())
            logprobs[list(ends[1:])] = -np.inf
    return NextTokens(logprobs)


def of_top(top: dict[int, float]) -> NextTokens:
    """What a server says of its likeliest tokens: log-probabilities by id."""
    logprobs = np.full(max(top) + 1, -np.inf)
    for token, value in top.items():
        logprobs[token] = value
    return NextTokens(logprobs, max(0.0, 1.0 - float(np.exp(list(top.values())).sum())))
