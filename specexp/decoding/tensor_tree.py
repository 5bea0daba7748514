"""A token tree grown by arrays alone: the one of `tree.py`, node for node, without a value on the host.

Every shape is known before the growth, so that it can be recorded: what has fewer nodes is padded. Scores are float64,
as on the host. Padding has a score of minus infinity; a node's own minus infinity (an id that is never emitted) is the
lowest finite number here, so that it ranks before padding.

Shapes: K places for nodes, E nodes that a level expands, V vocabulary, W children that a node proposes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from array_api_compat import array_namespace, device

from specexp.decoding.protocol import Array, GrownTree, GrowTree
from specexp.decoding.rules import best

When = Callable[[Array, Callable[[], None]], None]  # run the second, which changes arrays in place, if the first holds
# Rows of the nodes' integers. Numbers are in the order of admission; slots are the draft's, as is the parent's.
NUMBER, TOKEN, PARENT, PARENT_SLOT, DEPTH, RANK, SLOT = range(7)
SLOTS, CALLS, ACTIVE, BY_THRESHOLD, BY_LOG_PROB = range(5)  # of the counts
_NO_NUMBER = 2**62


class Expand(Protocol):
    """One draft forward."""

    def __call__(self, tokens: Array, parents: Array, depths: Array, first: Array) -> Array:
        """logits[E, V] after tokens[E], which follow the slots parents[E] (-1: the root) at depths[E] below the root.

        They are fed in slots first[1], first + 1, ...; the next level begins after those that are no padding.
        """
        ...


@dataclass(frozen=True, slots=True)
class TreeSizes:
    """The sizes of all arrays of a growth: `rows` of each draft forward, the root's first; `places` for nodes."""

    rows: tuple[int, ...]
    places: int

    @classmethod
    def of(cls, ask: GrowTree, vocab_size: int) -> TreeSizes:
        width = min(ask.width, vocab_size)
        rows, unexpanded = [1], min(ask.budget, width)
        while len(rows) < ask.max_depth:
            rows.append(min(ask.branches, unexpanded))
            unexpanded = min(ask.budget, unexpanded + rows[-1] * (width - 1))
        return cls(tuple(rows), min(ask.budget, sum(rows) * width))

    @property
    def slots(self) -> int:
        """The most slots of the draft that nodes take."""
        return sum(self.rows[1:])


def always(flag: Array, body: Callable[[], None]) -> None:
    """Run `body`, which does nothing where the flag does not hold."""
    body()


def grow_tree(ask: GrowTree, depth: Array, root: Array, expand: Expand, when: When = always) -> GrownTree:
    """Grow a tree below the root, whose logits are root[1, V], of at most depth[1] <= `ask.max_depth` levels, >= 1.

    `expand` runs inside `when`: what it changes, it changes in place.
    """
    sizes = TreeSizes.of(ask, root.shape[-1])
    growth = _Growth(ask, sizes, root)
    growth.admit_root(root)
    for level, rows in enumerate(sizes.rows[1:], 1):
        chosen, num = growth.frontier(rows, depth > level)
        widen = partial(growth.widen, rows, chosen, num, expand, sum(sizes.rows[:level]))
        when(num[0] > 0, widen)
    return growth.grown()


class _Growth:
    """The best nodes so far, best first, and the counts."""

    def __init__(self, ask: GrowTree, sizes: TreeSizes, like: Array) -> None:
        self._xp = xp = array_namespace(like)
        self._where = where = device(like)
        self._ask, self._sizes, self._width = ask, sizes, min(ask.width, like.shape[-1])
        self._least = math.log(ask.threshold) if ask.threshold else -math.inf
        self._nodes = xp.full((7, sizes.places), -1, dtype=xp.int64, device=where)
        self._scores = xp.full(sizes.places, -math.inf, dtype=xp.float64, device=where)
        self._counts = xp.zeros(5, dtype=xp.int64, device=where)
        self._peak = xp.zeros(1, dtype=xp.float64, device=where)

    def admit_root(self, logits: Array) -> None:
        """Add the root's children."""
        xp = self._xp
        zero = xp.zeros(1, dtype=xp.int64, device=self._where)
        above = xp.stack([zero if row == DEPTH else zero - 1 for row in range(7)])
        self._admit(self._nodes, above, xp.astype(zero, xp.float64), zero - 1, zero + 1, logits, 0)

    def frontier(self, rows: int, goes_on: Array) -> tuple[Array, Array]:
        """Which places are expanded next, numbered from 1, and 0 for the others [K]; and how many they are [1].

        In a full tree nothing enters below the worst node; in any other that is padding, which is below every node.
        """
        xp = self._xp
        could = (self._nodes[SLOT] < 0) & (self._scores > self._scores[-1:]) & goes_on
        order = xp.cumulative_sum(xp.astype(could, xp.int64))
        chosen = xp.where(could & (order <= rows), order, xp.zeros_like(order))
        return chosen, xp.max(chosen, keepdims=True)

    def widen(self, rows: int, chosen: Array, num: Array, expand: Expand, before: int) -> None:
        """Expand the chosen nodes, `num`[1] <= `rows` of them; `before` rows were expanded before, padding included."""
        xp, first = self._xp, self._counts[SLOTS : SLOTS + 1]
        # The places of the chosen nodes in their order, then others, which are not active.
        places = xp.argsort(xp.where(chosen > 0, chosen, xp.full_like(chosen, _NO_NUMBER)), stable=True)[:rows]
        slots = xp.where(chosen > 0, first + chosen - 1, self._nodes[SLOT])
        nodes = xp.stack([*(self._nodes[row] for row in range(SLOT)), slots])
        above, active, nothing = xp.take(nodes, places, axis=1), self._arange(rows) < num, xp.zeros_like(places)
        logits = expand(
            xp.where(active, above[TOKEN], nothing), xp.where(active, above[PARENT_SLOT], nothing - 1),
            xp.where(active, above[DEPTH], nothing + 1), first,
        )  # fmt: skip
        self._admit(nodes, above, xp.take(self._scores, places), first + self._arange(rows), num, logits, before)

    def _admit(
        self, nodes: Array, above: Array, scores: Array, slots: Array, num: Array, logits: Array, before: int
    ) -> None:
        """Add the children of the first `num`[1] of above[7, E], which have scores[E] and are in slots[E], to `nodes`.

        Changes all state in place, since a recording may skip it.
        """
        xp, width = self._xp, self._width
        logprob, ids = best(logits, width)
        logprob = xp.astype(logprob, xp.float64)
        rows = logprob.shape[0]
        active = (self._arange(rows) < num)[:, None]
        totals = scores[:, None] + xp.clip(logprob, None, 0.0)  # rounding may put log(1) above 0
        by_threshold = active & (logprob - logprob[:, :1] < self._least)
        by_log_prob = active & ~by_threshold & (totals < self._ask.min_log_prob)
        entering = active & ~by_threshold & ~by_log_prob
        lowest = xp.finfo(xp.float64).min
        padding = xp.full_like(totals, -math.inf)
        fresh_scores = xp.where(entering, xp.clip(totals, lowest, None), padding)
        blank = xp.zeros_like(ids)
        fresh = xp.stack(
            [
                xp.reshape(self._arange(rows * width) + before * width, ids.shape), ids, above[NUMBER][:, None] + blank,
                slots[:, None] + blank, above[DEPTH][:, None] + 1 + blank, self._arange(width)[None, :] + blank,
                blank - 1,
            ]
        )  # fmt: skip
        # Of equal scores the earlier node goes first, so that no child outranks its parent.
        all_scores = xp.concat([self._scores, xp.reshape(fresh_scores, (-1,))])
        order = xp.argsort(all_scores, descending=True, stable=True)[: self._sizes.places]
        self._nodes[...] = xp.take(xp.concat([nodes, xp.reshape(fresh, (7, -1))], axis=1), order, axis=1)
        self._scores[...] = xp.take(all_scores, order)
        is_root, pruned = not before, [xp.sum(xp.astype(each, xp.int64)) for each in (by_threshold, by_log_prob)]
        old = self._counts
        self._counts[...] = xp.stack(
            [
                old[SLOTS] + (0 if is_root else num[0]), old[CALLS] + xp.astype(num[0] > 0, xp.int64),
                xp.max(xp.stack([old[ACTIVE], num[0]])), old[BY_THRESHOLD] + pruned[0], old[BY_LOG_PROB] + pruned[1],
            ]
        )  # fmt: skip
        # The first of each row is finite, unless the row's logits are not; and then so is the sum not.
        self._peak[...] = self._peak + xp.sum(xp.where(active[:, 0], logprob[:, 0], xp.zeros_like(logprob[:, 0])))

    def grown(self) -> GrownTree:
        """The nodes in the order of their numbers: parents first."""
        xp, num_places = self._xp, self._sizes.places
        exists = self._scores > -math.inf
        order = xp.argsort(
            xp.where(exists, self._nodes[NUMBER], xp.full_like(self._nodes[NUMBER], _NO_NUMBER)), stable=True
        )
        nodes, exists = xp.take(self._nodes, order, axis=1), xp.take(exists, order)
        none = xp.full_like(nodes[NUMBER], -1)
        numbers = xp.where(exists, nodes[NUMBER], none + 1 + _NO_NUMBER)
        places = xp.where(exists & (nodes[PARENT] >= 0), xp.searchsorted(numbers, nodes[PARENT]), none)
        columns = (nodes[TOKEN], places + 1, nodes[SLOT], nodes[RANK])
        table = xp.stack([xp.where(exists, column, none) for column in columns])
        # A node's ancestors: one level up at each step, where it ends at the root.
        own = self._arange(num_places)
        sees, at = own[:, None] == own[None, :], places
        for _ in range(len(self._sizes.rows) - 1):
            sees = sees | (at[:, None] == own[None, :])
            at = xp.where(at >= 0, xp.take(places, xp.clip(at, 0, None)), none)
        num_nodes, depths = xp.sum(xp.astype(exists, xp.int64)), xp.where(exists, nodes[DEPTH], none + 1)
        counts, num_expanded = self._counts, self._counts[SLOTS] + 1
        num_candidates = num_expanded * self._width
        pruned = num_candidates - counts[BY_THRESHOLD] - counts[BY_LOG_PROB] - num_nodes
        return GrownTree(
            table=xp.concat([xp.full((4, 1), -1, dtype=xp.int64, device=self._where), table], axis=1),
            depths=xp.clip(depths, 1, None),
            sees=sees,
            counts=xp.stack(
                [
                    num_nodes, xp.max(depths), counts[CALLS], counts[ACTIVE], num_expanded, num_candidates,
                    counts[BY_THRESHOLD], counts[BY_LOG_PROB], pruned,
                ]
            ),
            scores=xp.take(self._scores, order),
            peak=self._peak,
        )  # fmt: skip

    def _arange(self, stop: int) -> Array:
        return self._xp.arange(stop, dtype=self._xp.int64, device=self._where)
