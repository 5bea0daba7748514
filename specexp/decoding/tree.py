"""A token tree grown on the host: the continuations of the last committed token that the target will score.

The tree holds the `budget` best candidates by cumulative draft log-probability. It is plain Python on values that were
read before: it has no asks, draws and arrays. What it prunes changes only the speed, never the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

ROOT = -1  # in place of a node: the last committed token


@dataclass(slots=True)
class Node:
    """A candidate that was not pruned when it was scored."""

    token: int
    parent: int  # its place in Tree.nodes, or ROOT
    depth: int  # 1 below the root
    rank: int  # among its siblings; 0 is the draft's favourite
    score: float  # log-probability of its path under the draft, at temperature 1
    slot: int = -1  # its place in the draft's cache, once it was expanded


@dataclass(slots=True)
class Tree:
    """Grown by `widen`, until `frontier` is empty. `kept` are the places of the best nodes, best first."""

    budget: int
    threshold: float = 0.0
    min_log_prob: float = -math.inf
    nodes: list[Node] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    num_draft_calls: int = 0
    max_active: int = 0  # most nodes expanded in one of them
    num_expanded: int = 0  # the root included
    num_candidates: int = 0
    pruned_by_threshold: int = 0
    pruned_by_log_prob: int = 0

    def frontier(self, count: int) -> list[int]:
        """The best `count` nodes that were not expanded and whose children could still enter.

        A child is never better than its parent, and a later one loses a tie: in a full tree nothing enters below the
        worst node.
        """
        if not self.num_expanded:
            return [ROOT]
        full = len(self.kept) == self.budget
        bar = self.nodes[self.kept[-1]].score if full else -math.inf
        unexpanded = (i for i in self.kept if self.nodes[i].slot < 0)
        return [i for i in unexpanded if not full or self.nodes[i].score > bar][:count]

    def to_score(self, places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokens of these nodes, and the draft's slots that they follow; the root needs no token."""
        nodes = [self.nodes[place] for place in places if place != ROOT]
        return [n.token for n in nodes], [ROOT if n.parent == ROOT else self.nodes[n.parent].slot for n in nodes]

    def widen(
        self, parents: Sequence[int], first_slot: int, logprob: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]
    ) -> None:
        """Add what `logprob` and `ids`, a row for each parent, best first, propose below `parents`.

        These were scored in slots `first_slot`, `first_slot` + 1, ... of the draft.
        """
        self.num_draft_calls += 1
        self.max_active = max(self.max_active, len(parents))
        self.num_expanded += len(parents)
        fresh: list[int] = []
        for i, (parent, scores, tokens) in enumerate(zip(parents, logprob, ids, strict=True)):
            if parent != ROOT:
                self.nodes[parent].slot = first_slot + i
            self.num_candidates += len(tokens)
            fresh += self._admit(parent, scores, tokens)
        # Of equal scores the earlier node goes first, so that no child outranks its parent.
        ranked = sorted(self.kept + fresh, key=lambda i: (-self.nodes[i].score, i))
        self.kept = ranked[: self.budget]

    def _admit(self, parent: int, scores: Sequence[float], tokens: Sequence[int]) -> range:
        """Append the children that pass both thresholds; their places."""
        above = Node(-1, ROOT, 0, 0, 0.0) if parent == ROOT else self.nodes[parent]
        start = len(self.nodes)
        least = math.log(self.threshold) if self.threshold else -math.inf
        for rank, (score, token) in enumerate(zip(scores, tokens, strict=True)):
            total = above.score + min(score, 0.0)  # rounding may put log(1) above 0
            if score - scores[0] < least:
                self.pruned_by_threshold += 1
            elif total < self.min_log_prob:
                self.pruned_by_log_prob += 1
            else:
                self.nodes.append(Node(token, parent, above.depth + 1, rank, total))
        return range(start, len(self.nodes))

    def grown(self) -> list[tuple[Node, int]]:
        """The kept nodes, parents first, each with its parent's place in this list (ROOT for the root)."""
        places = sorted(self.kept)
        rows = {place: row for row, place in enumerate(places)} | {ROOT: ROOT}
        result = [(self.nodes[place], rows.get(self.nodes[place].parent)) for place in places]
        assert all(row is not None for _, row in result), "a node is kept without its parent"
        return [(node, row) for node, row in result if row is not None]

    @property
    def depth(self) -> int:
        return max((self.nodes[place].depth for place in self.kept), default=0)

    def counts(self) -> dict[str, int]:
        """The counts to record. A node that passed both thresholds and is not kept counts as pruned by the budget."""
        return {
            "num_nodes": len(self.kept),
            "depth": self.depth,
            "num_draft_calls": self.num_draft_calls,
            "max_active": self.max_active,
            "num_expanded": self.num_expanded,
            "num_candidates": self.num_candidates,
            "pruned_by_threshold": self.pruned_by_threshold,
            "pruned_by_log_prob": self.pruned_by_log_prob,
            "pruned_by_budget": len(self.nodes) - len(self.kept),
        }
