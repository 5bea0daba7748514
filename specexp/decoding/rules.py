"""The arithmetic of speculative sampling: warping logits, and verifying a drafted chain.

Pure array functions; they import neither numpy nor torch and never branch on an array's value, so that the lines which
the exact tests check are the lines that run on a GPU. The random numbers are the caller's: see `rng.py`.

Shapes: G drafted tokens, V vocabulary, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from specexp.errors import ConfigError

if TYPE_CHECKING:
    from specexp.decoding.rng import Rng

Array = Any
MOST_TOP_K = 2**31 - 1  # array libraries compare ranks with it
# A lower temperature is greedy: it could only tell apart logits that rounding mixes up anyway, and far below this the
# division is undefined (1e-46 is 0 in float32, and 1e-40 has no finite reciprocal).
LEAST_TEMPERATURE = 1e-5


def is_greedy(temperature: float) -> bool:
    """Whether the first largest logit is chosen at this temperature, and nothing is drawn."""
    return temperature < LEAST_TEMPERATURE


@dataclass(frozen=True, slots=True)
class Warp:
    """Logits to the distribution that is sampled: temperature, then top-k, then top-p.

    `temperature` 0, and any below `LEAST_TEMPERATURE`, is exactly one-hot on the first largest logit. `top_k` 0 and
    `top_p` 1 are off. Of equal logits the lower id ranks first, so that top-k keeps exactly k tokens. top-p keeps the
    smallest set that reaches its mass.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        faults = self.faults(self.temperature, self.top_k, self.top_p)
        if faults:
            raise ConfigError(faults)

    @staticmethod
    def faults(temperature: float, top_k: int, top_p: float) -> list[str]:
        """What is wrong with these settings, one line each."""
        result = []
        if not 0 <= temperature < float("inf"):
            result.append(f"temperature is {temperature}; it must be a number >= 0 (0 = greedy).")
        if top_k < 0:
            result.append(f"top_k is {top_k}; it must be >= 0 (0 = off).")
        if top_k > MOST_TOP_K:
            result.append(f"top_k is {top_k}; it must be at most {MOST_TOP_K}, which is more than any vocabulary has.")
        if not 0 < top_p <= 1:
            result.append(f"top_p is {top_p}; it must be in (0, 1] (1 = off).")
        return result

    @property
    def greedy(self) -> bool:
        return is_greedy(self.temperature)

    def of_draft(self, temperature: float | None) -> Warp:
        """The warp that drafts are drawn from at a temperature of their own; None is this one's. At 0 nothing is drawn
        and nothing changes."""
        return self if temperature is None or self.greedy else replace(self, temperature=temperature)

    @property
    def softened(self) -> Warp:
        """This warp, or in place of a greedy one that of temperature 1."""
        return UNIT_TEMPERATURE if self.greedy else self

    @property
    def one_hot(self) -> bool:
        """True if every distribution is one-hot, so that nothing is drawn at random."""
        return self.greedy or self.top_k == 1

    def first(self, logits: Array) -> Array:
        """logits[R, V] -> the tokens[R] that temperature 0 chooses: the first largest of each row."""
        return array_namespace(logits).argmax(logits, axis=-1)

    def __call__(self, logits: Array) -> Array:
        """logits[R, V] -> probabilities[R, V] of the same dtype."""
        xp = array_namespace(logits)
        if self.greedy:
            ids = xp.arange(logits.shape[-1], device=device(logits))
            return xp.astype(ids[None, :] == self.first(logits)[:, None], logits.dtype)
        # Subtract the largest before dividing: then no temperature, however small, overflows.
        weights = xp.exp((logits - xp.max(logits, axis=-1, keepdims=True)) / self.temperature)
        p = weights / xp.sum(weights, axis=-1, keepdims=True)
        if not self.top_k and self.top_p == 1:
            return p
        order = xp.argsort(p, axis=-1, descending=True, stable=True)
        ranked = xp.take_along_axis(p, order, axis=-1)
        if self.top_k:
            ranks = xp.arange(p.shape[-1], device=device(p))
            ranked = xp.where(ranks[None, :] < self.top_k, ranked, xp.zeros_like(ranked))
            ranked = ranked / xp.sum(ranked, axis=-1, keepdims=True)
        if self.top_p < 1:
            before = xp.cumulative_sum(ranked, axis=-1) - ranked
            # The likeliest token stays, however small top_p is: 5e-324 is 0 in float32.
            ranked = xp.where((before < self.top_p) | (before == 0), ranked, xp.zeros_like(ranked))
            ranked = ranked / xp.sum(ranked, axis=-1, keepdims=True)
        return xp.take_along_axis(ranked, xp.argsort(order, axis=-1), axis=-1)


UNIT_TEMPERATURE = Warp(1.0)


def best(logits: Array, count: int) -> tuple[Array, Array]:
    """Log-probabilities[R, W] at temperature 1 and ids[R, W] of the W = min(count, V) likeliest tokens, best first."""
    xp = array_namespace(logits)
    order = xp.argsort(logits, axis=-1, descending=True, stable=True)[:, :count]
    highest = xp.max(logits, axis=-1, keepdims=True)
    mass = highest + xp.log(xp.sum(xp.exp(logits - highest), axis=-1, keepdims=True))
    return xp.take_along_axis(logits, order, axis=-1) - mass, order


@dataclass(frozen=True, slots=True, eq=False)
class VerifyResult:
    """The result of verifying a drafted chain, as arrays; `num_accepted` is 0-d."""

    tokens: Array  # [G + 1]: the accepted drafts, then the correction or the bonus token, then the rest of the drafts
    num_accepted: Array
    judged: Array | int  # [G], bools: accepted although the lossless rule rejected them; 0 where no rule accepts more
    overlap: Array  # [G]: sum_x min(p, q) at every drafted position, tested or not

    @property
    def num_judged(self) -> Array | int:
        if isinstance(self.judged, int):
            return self.judged
        xp = array_namespace(self.judged)
        return xp.sum(xp.astype(self.judged, xp.int64))


def verify(
    p: Array, q: Array, drafted: Array, accepted_anyway: Array | None, rng: Rng, position: Array | int,
    num_drafted: Array | None = None,
) -> VerifyResult:  # fmt: skip
    """Accept x_i with probability min(1, p_i(x_i) / q_i(x_i)), or if accepted_anyway[i]; after the first rejection draw
    from norm(max(p - q, 0)), after none from p (Leviathan et al. 2211.17192, Algorithm 1).

    p[G + 1, V], q[G, V], drafted[G], accepted_anyway[G] of bools; `position` is that of the first drafted token. Of
    drafts behind `num_drafted`[1], which are padding, none is accepted. A residual without mass falls back to p.
    """
    if not drafted.shape[0]:
        return _undrafted(p, rng, position)
    xp = array_namespace(p)
    prob = xp.clip(_ratios(p, q, drafted), 0, 1)
    if num_drafted is not None:
        there = _there(drafted, num_drafted)
        prob, q = xp.where(there, prob, xp.zeros_like(prob)), xp.where(there[:, None], q, xp.zeros_like(q))
        accepted_anyway = None if accepted_anyway is None else accepted_anyway & there
    num_accepted, passed = rng.accept_prefix(prob, accepted_anyway, position)
    # Row `num_accepted` of p, less that row of q. After the last draft q is zero, which leaves p: the bonus row.
    row, judges = _row(p, num_accepted), accepted_anyway is not None
    return _verdict(row, p, q, drafted, num_accepted, rng, position, passed if judges else None, num_drafted)


def verify_block(p: Array, q: Array, drafted: Array, rng: Rng, position: Array | int) -> VerifyResult:
    """Accept as many of the drafted tokens as the whole chain allows (Sun et al. 2403.10444, Algorithm 2).

    `verify` stops at the first token that fails. Here x_1..x_i are kept with probability b_i = min(1, b_(i-1) p(x_i) /
    q(x_i)), b_0 = 1: a likely token makes up for an unlikely one before it. The longest prefix is taken that passes its
    test h_i. What follows it is drawn from norm(max(b_i p - q, 0)), after the whole chain from p. The output is
    distributed as p, and the expected number of accepted tokens is never below `verify`'s.

    Shapes as for `verify`. The tests read what was drafted behind the accepted tokens: those drafts and the draws here
    must be the round's own (`Rng.of_round`).
    """
    if not drafted.shape[0]:
        return _undrafted(p, rng, position)
    xp = array_namespace(p)
    ratios, kept = _ratios(p, q, drafted), [xp.ones_like(p[:1, 0])]  # b_0, b_1, ...
    for i in range(drafted.shape[0]):
        kept.append(xp.clip(kept[-1] * ratios[i], None, 1))
    b = xp.concat(kept)
    mass = xp.sum(xp.clip(b[1:-1, None] * p[1:-1] - q[1:], 0, None), axis=-1)  # S_1 ... S_(gamma - 1)
    total = mass + (1 - b[1:-1])
    none = total == 0  # p = q there: nothing tells against these tokens
    passes = xp.where(none, xp.ones_like(total), mass / xp.where(none, xp.ones_like(total), total))
    num_accepted = rng.of_round(position).accept_longest(xp.concat([passes, b[1:][-1:]]), position)
    row = _row(b, num_accepted) * _row(p, num_accepted)
    return _verdict(row, p, q, drafted, num_accepted, rng, position, None)


def _undrafted(p: Array, rng: Rng, position: Array | int) -> VerifyResult:
    """The verdict on an empty chain: what plain decoding draws. Rounds without a draft cost no more than its steps."""
    tokens = rng.target_draws(p, position)
    return VerifyResult(tokens, array_namespace(p).zeros_like(tokens[0]), 0, p[:0, 0])


def _ratios(p: Array, q: Array, drafted: Array) -> Array:
    """p_i(x_i) / q_i(x_i) of the drafted tokens[G]."""
    xp, where = array_namespace(p), drafted[:, None]
    return (xp.take_along_axis(p[:-1], where, axis=-1) / xp.take_along_axis(q, where, axis=-1))[:, 0]


def _row(rows: Array, number: Array) -> Array:
    return array_namespace(rows).take(rows, number[None], axis=0)[0]


def _there(drafted: Array, num_drafted: Array) -> Array:
    """[G] of bools: which of drafted[G] are no padding."""
    return array_namespace(drafted).arange(drafted.shape[0], device=device(drafted)) < num_drafted


def _verdict(
    row: Array, p: Array, q: Array, drafted: Array, num_accepted: Array, rng: Rng, position: Array | int,
    passed: Array | None, num_drafted: Array | None = None,
) -> VerifyResult:  # fmt: skip
    """Append a token to the accepted ones: drawn from what row[V] has more than q there, and from row if that is
    nothing. `passed`[G] are the drafts that need no rule to accept them anyway; None if there is no such rule."""
    xp = array_namespace(p)
    residual = xp.clip(row - _row(xp.concat([q, xp.zeros_like(p[:1])]), num_accepted), 0, None)
    weights = xp.where(xp.any(residual > 0), residual, row)
    token = rng.sample_next(weights, position, num_accepted, drafted.shape[0] if num_drafted is None else num_drafted)
    ids = xp.arange(p.shape[0], device=device(p))
    tokens = xp.where(ids == num_accepted, token, xp.concat([drafted, _zero(xp, drafted)]))
    judged = 0 if passed is None else (ids[:-1] < num_accepted) & ~passed
    return VerifyResult(tokens, num_accepted, judged, xp.sum(xp.minimum(p[:-1], q), axis=-1))


def verify_greedy(
    logits: Array, drafted: Array, accepted_anyway: Array | None, num_drafted: Array | None = None
) -> VerifyResult:
    """`verify` at temperature 0, where p and q are one-hot and nothing is drawn: x_i passes if it is the target's
    first choice, and what follows the accepted tokens is the target's.

    logits[G + 1, V], drafted[G], accepted_anyway[G] of bools; `num_drafted` as for `verify`.
    """
    return _matched(array_namespace(logits).argmax(logits, axis=-1), drafted, accepted_anyway, num_drafted)


def verify_match(
    p: Array, drafted: Array, rng: Rng, position: Array | int, num_drafted: Array | None = None
) -> VerifyResult:
    """Accept the drafted tokens up to the first that is not the one that the target draws there: plain decoding's
    output, seed by seed, whatever was drafted (SLEM in Timor et al. 2502.05202).

    p[G + 1, V], drafted[G]; `position` is that of the first drafted token; `num_drafted` as for `verify`.
    """
    result = _matched(rng.target_draws(p, position), drafted, None, num_drafted)
    chance = array_namespace(p).take_along_axis(p[:-1], drafted[:, None], axis=-1)[:, 0]
    return replace(result, overlap=chance)


def _matched(choice: Array, drafted: Array, accepted_anyway: Array | None, num_drafted: Array | None) -> VerifyResult:
    """`verify` where the target's tokens are known: choice[G + 1]."""
    xp = array_namespace(choice)
    passed = choice[:-1] == drafted
    if num_drafted is not None:
        there = _there(drafted, num_drafted)
        passed, accepted_anyway = passed & there, None if accepted_anyway is None else accepted_anyway & there
    same = xp.astype(passed, drafted.dtype)
    kept = same if accepted_anyway is None else xp.astype(passed | accepted_anyway, drafted.dtype)
    num_accepted = xp.sum(xp.cumulative_prod(kept))
    if accepted_anyway is None:
        return VerifyResult(choice, num_accepted, 0, same)
    accepted = xp.arange(choice.shape[0], device=device(choice)) < num_accepted
    tokens = xp.where(accepted, xp.concat([drafted, _zero(xp, drafted)]), choice)
    return VerifyResult(tokens, num_accepted, accepted[:-1] & ~passed, same)


def one_hot(tokens: Array, like: Array) -> Array:
    """tokens[G] as distributions[G, V] that hold one token each, of the dtype of like[R, V]."""
    xp = array_namespace(like)
    ids = xp.arange(like.shape[-1], device=device(like))
    return xp.astype(tokens[:, None] == ids[None, :], like.dtype)


def _zero(xp: Any, like: Array) -> Array:
    return xp.zeros(1, dtype=like.dtype, device=device(like))


def without(logits: Array, banned: Sequence[frozenset[int]]) -> Array:
    """logits[R, V], where those of ids that are banned in a row are -inf. The sets that are not empty are the same."""
    ids = frozenset[int]().union(*banned)
    if not ids:
        return logits
    xp, where = array_namespace(logits), device(logits)
    columns = xp.arange(logits.shape[-1], device=where)
    is_banned = columns < 0
    for each in sorted(ids):
        is_banned = is_banned | (columns == each)
    rows = xp.asarray([bool(each) for each in banned], device=where)
    return xp.where(rows[:, None] & is_banned[None, :], xp.full_like(logits, float("-inf")), logits)
