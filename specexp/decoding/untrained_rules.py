"""Lossy acceptance rules that need no training: typical acceptance, entropy gates, FLy, fuzzy acceptance.

Each accepts what the lossless rule accepts, and in addition what its inequality accepts, which is strict: at one end of
its dial it accepts nothing more and is the lossless chain, at the same cost. A token that only it accepts is counted as
judged.

Typical acceptance and the entropy gate read the target's row where a token stands alone, and so decide on a tree's
nodes, too (`TreeRule`). FLy looks at the target's choices behind a token, fuzzy acceptance at the draft's whole
distribution: of a tree's nodes there is neither, so these two are for chains.

p and q are the distributions that target and draft sample from; at temperature 0, where these are one-hot, those at
temperature 1 (`Warp.softened`). H(p) = -sum_x p(x) log p(x), in nats.

Shapes: G drafted tokens, V vocabulary, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from array_api_compat import array_namespace, device

from specexp.decoding.protocol import Array, Drafted, Needs, Scored
from specexp.decoding.rules import Warp


def entropy(p: Array) -> Array:
    """H[R] in nats of p[R, V]."""
    return -_sum_of_logs(p, p)


def total_variation(p: Array, q: Array) -> Array:
    """TV[R] = sum_x |p - q| / 2, from 0 to 1."""
    xp = array_namespace(p)
    return xp.sum(xp.abs(p - q), axis=-1) / 2


def kullback_leibler(p: Array, q: Array) -> Array:
    """KL(q || p)[R] = sum_x q log(q / p) in nats: infinite where the draft proposes what the target never says."""
    xp = array_namespace(p)
    never = xp.any((q > 0) & (p == 0), axis=-1)
    return xp.where(never, xp.full_like(p[..., 0], math.inf), _sum_of_logs(q, q) - _sum_of_logs(q, p))


def jensen_shannon(p: Array, q: Array) -> Array:
    """JS[R] = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, from 0 to log 2."""
    middle = (p + q) / 2
    return (_sum_of_logs(p, p) - _sum_of_logs(p, middle) + _sum_of_logs(q, q) - _sum_of_logs(q, middle)) / 2


def _sum_of_logs(weights: Array, p: Array) -> Array:
    """sum_x weights log p, [R], where 0 log 0 is 0."""
    xp = array_namespace(p)
    return xp.sum(weights * xp.log(xp.where(p > 0, p, xp.ones_like(p))), axis=-1)


DISTANCES: Mapping[str, Callable[[Array, Array], Array]] = {
    "js": jensen_shannon, "kl": kullback_leibler, "tv": total_variation,
}  # fmt: skip


def at_drafted(drafted: Drafted, scored: Scored) -> Array:
    """The target's logits[G, V] where each drafted token stands."""
    assert scored.logits is not None
    return scored.logits[: drafted.tokens.shape[0]]


def at_nodes(tokens: Array, parents: Array, scored: Scored) -> tuple[Array, Array]:
    """The target's logits[N + 1, V] where each of a tree's nodes stands, and the nodes' tokens[N + 1].

    Row 0 is the root's, which stands nowhere: it gets a row and a token that exist.
    """
    assert scored.logits is not None
    xp = array_namespace(scored.logits)
    return xp.take(scored.logits, xp.clip(parents, 0, None), axis=0), xp.clip(tokens, 0, None)


@dataclass(frozen=True, slots=True)
class Typical:
    """Typical acceptance (Medusa, Cai et al. 2401.10774): accepts x if p(x) > min(epsilon, delta exp(-H(p))).

    With epsilon 1 and an infinite delta it accepts nothing more.
    """

    epsilon: float
    delta: float
    warp: Warp

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def recordable(self) -> bool:
        return True

    @property
    def is_off(self) -> bool:
        return self.epsilon >= 1 and self.delta == math.inf

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        if not drafted.tokens.shape[0] or self.is_off:
            return None
        return self._likely(at_drafted(drafted, scored), drafted.tokens)

    def accept_nodes(self, tokens: Array, parents: Array, scored: Scored) -> Array | None:
        return None if self.is_off else self._likely(*at_nodes(tokens, parents, scored))

    def _likely(self, rows: Array, tokens: Array) -> Array:
        xp, p = array_namespace(rows), self.warp.softened(rows)
        least = xp.clip(self.delta * xp.exp(-entropy(p)), None, self.epsilon)
        return xp.take_along_axis(p, tokens[:, None], axis=-1)[:, 0] > least


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """Accepts every token where the target is unsure: H(p) > gate log V. With gate 1 it accepts nothing more."""

    gate: float
    warp: Warp

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def recordable(self) -> bool:
        return True

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        if not drafted.tokens.shape[0] or self.gate >= 1:
            return None
        return self._unsure(at_drafted(drafted, scored))

    def accept_nodes(self, tokens: Array, parents: Array, scored: Scored) -> Array | None:
        return None if self.gate >= 1 else self._unsure(at_nodes(tokens, parents, scored)[0])

    def _unsure(self, rows: Array) -> Array:
        return entropy(self.warp.softened(rows)) > self.gate * math.log(rows.shape[-1])


@dataclass(frozen=True, slots=True)
class FLy:
    """FLy (Li et al. 2511.22972), for temperature 0: accepts a mismatch where H(p) > gate log V, if the target's first
    choices at the next `window` positions are the drafted tokens there.

    A window that reaches past the draft's end counts as disagreement; the draft ends with an EOS, too, so that one that
    the target does not want is never accepted. With gate 1 it accepts nothing more.
    """

    gate: float
    window: int
    eos_ids: tuple[int, ...]
    warp: Warp

    @property
    def needs(self) -> Needs:
        return Needs(all_rows=self.gate < 1)

    @property
    def recordable(self) -> bool:
        return True

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        num_drafted = drafted.tokens.shape[0]
        if not num_drafted or self.gate >= 1:
            return None
        assert self.warp.greedy, "FLy compares first choices"
        xp = array_namespace(drafted.tokens)
        logits = at_drafted(drafted, scored)
        unsure = entropy(self.warp.softened(logits)) > self.gate * math.log(logits.shape[-1])
        agrees = self.warp.first(logits) == drafted.tokens
        for eos in self.eos_ids:
            ends = xp.astype(drafted.tokens == eos, xp.int64)
            agrees = agrees & (xp.cumulative_sum(ends) == ends)  # none before it
        return unsure & self._agree_behind(agrees)

    def _agree_behind(self, agrees: Array) -> Array:
        """[G]: whether all of the next `window` positions are there and agree."""
        xp, num = array_namespace(agrees), agrees.shape[0]
        inside = max(0, num - self.window)  # positions whose window ends in the draft
        none = xp.zeros(num, dtype=xp.int64, device=device(agrees))
        before = xp.concat([none[:1], xp.cumulative_sum(xp.astype(agrees, xp.int64))])  # [i]: how many of the first i
        behind = before[self.window + 1 :] - before[1 : inside + 1]
        return xp.concat([behind, none[inside:]]) == self.window


@dataclass(frozen=True, slots=True)
class Fuzzy:
    """Fuzzy acceptance (Holsman et al. 2502.20704): accepts every token where the distance of p and q is below `bound`.

    With bound 0 it accepts nothing more.
    """

    distance: str  # a key of DISTANCES
    bound: float
    warp: Warp

    @property
    def needs(self) -> Needs:
        return Needs(draft_q=self.bound > 0)

    @property
    def recordable(self) -> bool:
        return True

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        if not drafted.tokens.shape[0] or self.bound <= 0:
            return None
        assert drafted.q is not None, "the draft's distributions that the rule needs were not requested"
        p = self.warp.softened(at_drafted(drafted, scored))
        return DISTANCES[self.distance](p, drafted.q) < self.bound
