"""Tokens that a round is expected to give at an assumed acceptance A: arithmetic alone, no model and no clock.

Every drafted token is accepted with probability A, whatever came before. A chain of gamma tokens gives

    E = 1 + A + A^2 + ... + A^gamma = (1 - A^(gamma + 1)) / (1 - A)

tokens a round, the correction or bonus included (Leviathan et al. 2211.17192). In a tree the siblings of a node are
tried one after another, each with A: the r-th is accepted with A (1 - A)^(r - 1), and one of k with 1 - (1 - A)^k. A
node is reached with the product over its path, and a tree gives 1 + the sum of these products over its nodes. The tree
of n nodes here is the best of that many, which has the n largest products (Sequoia, Chen et al. 2402.12374).

Real drafts are less sure deep in a tree and on later siblings: what a pair gives is measured by `evaluate`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from specexp.profiling.call_costs import TreeRound

DEEPEST = 32  # levels: each costs a draft call


@dataclass(frozen=True, slots=True)
class AssumedTree:
    """The best tree of `nodes` nodes on `depth` levels, and the tokens that its rounds are expected to give."""

    nodes: int
    depth: int
    expected: float

    @property
    def round(self) -> TreeRound:
        """Its calls: one of the draft for each level, on as many nodes as a level has on average."""
        return TreeRound(self.nodes, self.depth, -(-self.nodes // self.depth))


def chain_tokens(acceptance: float, gamma: int) -> float:
    """Tokens of a round of a chain: (1 - A^(gamma + 1)) / (1 - A), for A in (0, 1)."""
    return (1 - acceptance ** (gamma + 1)) / (1 - acceptance)


def best_tree(acceptance: float, nodes: int, deepest: int = DEEPEST) -> AssumedTree:
    """The tree of so many nodes that gives most tokens, of all on `deepest` levels at most; A is in (0, 1)."""
    # Of a node only its first child and its next sibling are new, and neither is more probable than the node.
    waiting = [(-acceptance, 1)]
    depth, expected = 0, 1.0
    for _ in range(nodes):
        negative, level = heapq.heappop(waiting)
        depth, expected = max(depth, level), expected - negative
        heapq.heappush(waiting, (negative * (1 - acceptance), level))
        if level < deepest:
            heapq.heappush(waiting, (negative * acceptance, level + 1))
    return AssumedTree(nodes, depth, expected)
