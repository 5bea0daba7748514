"""A chi-square test of whether sampled outputs follow the target, by how they begin, and how large a bias it detects.

Outputs are sorted into cells by their first tokens. The cells are the leaves of a prefix tree, which is split where the
target continues enough outputs: their probabilities are exact, and there are never more than MOST_CELLS of them. What
remains of a prefix joins the cell of everything else that follows the prefix before it. Nothing here decodes.

A planted bias also has a known size: at every draw the likeliest token weighs 1 + tilt times what it should. That
changes each cell's probability by a known factor, from which the power of the test follows.

Shapes: V vocabulary, C cells.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binom, chi2, ncx2

Array = np.ndarray[Any, Any]
Prefix = tuple[int, ...]
MOST_CELLS = 40
LEAST_EXPECTED = 5  # outputs in a cell, for the chi-square distribution to hold
_LARGEST_TILT = 1e6
NEVER = 1e-12  # used in place of probability 0: a single output that cannot occur is then detected


@dataclass(slots=True)
class _Node:
    """A prefix that was split: the shares of the next tokens that have a child, and the cell of all other tokens."""

    top: int  # the likeliest token
    top_share: float
    shares: dict[int, float] = field(default_factory=dict)
    children: dict[int, _Node | int] = field(default_factory=dict)
    other: int = -1  # set once all cells are known


@dataclass(frozen=True, slots=True)
class Cells:
    """All outputs, by how they begin. The last cell has all that no other cell has; `names` are the cells' prefixes."""

    root: _Node
    names: tuple[tuple[Prefix, bool], ...]  # True if the cell is everything else after the prefix

    def of(self, output: Sequence[int]) -> int:
        """The cell of an output; one that ended too early is among the others of the prefix where it ended."""
        node: _Node = self.root
        for token in output:
            child = node.children.get(token)
            if child is None:
                break
            if isinstance(child, int):
                return child
            node = child
        return node.other

    def probability(self, tilt: float = 0.0) -> Array:
        """Probability[C] of each cell, when at every draw the likeliest token weighs 1 + `tilt` times as much."""
        result = np.zeros(len(self.names))
        todo: list[tuple[_Node, float]] = [(self.root, 1.0)]
        while todo:
            node, mass = todo.pop()
            left = 1.0
            for token, share in node.shares.items():
                share *= (1 + tilt if token == node.top else 1.0) / (1 + tilt * node.top_share)
                left -= share
                child = node.children[token]
                if isinstance(child, int):
                    result[child] += mass * share
                else:
                    todo.append((child, mass * share))
            result[node.other] += mass * max(left, 0.0)
        return result

    def under(self, row: Callable[[Prefix], Array]) -> Array:
        """Probability[C] of each cell where the next tokens follow `row(prefix)`: probabilities[V] that may sum to
        less than 1, if some tokens are not known."""
        result = np.zeros(len(self.names))
        todo: list[tuple[_Node, Prefix, float]] = [(self.root, (), 1.0)]
        while todo:
            node, prefix, mass = todo.pop()
            p = row(prefix) if mass else np.zeros(0)
            left = mass
            for token, child in node.children.items():
                share = mass * float(p[token]) if token < len(p) else 0.0
                left -= share
                if isinstance(child, int):
                    result[child] += share
                else:
                    todo.append((child, (*prefix, token), share))
            result[node.other] += max(left, 0.0)
        return result


def split(row: Callable[[Prefix], Array], length: int, ends: Collection[int], num_samples: int) -> Cells:
    """The cells of `num_samples` outputs of up to `length` tokens; an output ends early at one of `ends`.

    `row(prefix)` gives the exact probabilities[V] of the next token. It is called for prefixes that at least two cells'
    worth of outputs begin with.
    """
    least = max(LEAST_EXPECTED / num_samples, 1 / MOST_CELLS)
    names: list[tuple[Prefix, bool]] = []

    def grow(prefix: Prefix, mass: float) -> tuple[_Node, float, list[_Node]]:
        """The node of a prefix; the mass that it leaves to the prefix before it; and the nodes that this mass is of."""
        p = row(prefix)
        node = _Node(int(p.argmax()), float(p.max()))
        kept, left, homeless = 0.0, 0.0, [node]
        for token in np.flatnonzero(mass * p >= least).tolist():
            share = float(p[token])
            node.shares[token] = share
            kept += share
            behind = (*prefix, token)
            if len(behind) == length or token in ends or mass * share < 2 * least:
                node.children[token] = len(names)
                names.append((behind, False))
            else:
                child, more, nodes = grow(behind, mass * share)
                node.children[token] = child
                left += more
                homeless += nodes
        left += mass * max(1 - kept, 0.0)
        if left < least and prefix:
            return node, left, homeless
        for each in homeless:
            each.other = len(names)
        names.append((prefix, True))
        return node, 0.0, []

    root, _, _ = grow((), 1.0)
    return Cells(root, tuple(names))


@dataclass(frozen=True, slots=True)
class Tested:
    """The result of a chi-square test. `worst` is the cell that deviates most for its size."""

    statistic: float
    degrees: int
    p: float
    worst: int


def compare(counts: Array, probability: Array) -> Tested:
    """Test counts[C] against probability[C]: chi-square, and for a rare leftover cell also whether it has too many
    outputs (an exact binomial tail). The p covers both together, by Bonferroni.
    """
    n = int(counts.sum())
    observed, share = merged(counts.astype(float), probability, n)
    terms = (observed - n * share) ** 2 / (n * share)
    degrees = len(share) - 1
    p = float(chi2.sf(terms.sum(), degrees)) if degrees else 1.0
    if is_rare(probability, n):
        often = float(binom.sf(counts[-1] - 1, n, max(float(probability[-1]), NEVER)))
        p = min(1.0, 2 * min(p, often))
    spread = np.sqrt(n * np.maximum(probability, NEVER))
    return Tested(float(terms.sum()), degrees, p, int((np.abs(counts - n * probability) / spread).argmax()))


def is_rare(probability: Array, num_samples: int) -> bool:
    """True if the leftover cell expects too few outputs."""
    return len(probability) > 1 and bool(num_samples * probability[-1] < LEAST_EXPECTED)


def merged(counts: Array, probability: Array, num_samples: int) -> tuple[Array, Array]:
    """Both over cells that all expect enough outputs: a rare leftover cell joins the rarest other cell."""
    if is_rare(probability, num_samples):
        into = int(probability[:-1].argmin())
        counts, probability = (np.append(each[:-1], 0.0) + each[-1] * (np.arange(len(each)) == into)
                               for each in (counts, probability))  # fmt: skip
        counts, probability = counts[:-1], probability[:-1]
    return counts, probability / probability.sum()


def distance(one: Array, other: Array) -> float:
    """Total variation of two distributions over cells."""
    return float(np.abs(one - other).sum() / 2)


def tilt_for(cells: Cells, variation: float) -> float:
    """The tilt whose outputs are this total variation from the target's; if none is that far, the largest tilt."""
    fair = cells.probability()
    low, high = 0.0, _LARGEST_TILT
    for _ in range(200):
        middle = (low + high) / 2 if high < 1 else (max(low, 1e-6) * high) ** 0.5
        if distance(cells.probability(middle), fair) < variation:
            low = middle
        else:
            high = middle
    return high


def power(cells: Cells, tilt: float, num_samples: int, level: float) -> float:
    """Probability that the test tells so many samples of the planted bias from the target's at this level."""
    moved, share = merged(cells.probability(tilt), cells.probability(), num_samples)
    if len(share) == 1:
        return 0.0
    strength = num_samples * float(((moved - share) ** 2 / share).sum())
    return float(ncx2.sf(chi2.isf(level, len(share) - 1), len(share) - 1, strength))


def bonferroni(ps: Sequence[float]) -> float:
    """The smallest of several p, corrected for their number."""
    return min(1.0, len(ps) * min(ps))


def holm(ps: Sequence[float]) -> list[float]:
    """Each of several p, corrected for their number by Holm's step-down procedure (1979)."""
    result, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        result[place] = largest
    return result


def named(cells: Cells, cell: int, decode: Callable[[Sequence[int]], str]) -> str:
    """A cell as readable text."""
    prefix, other = cells.names[cell]
    if not prefix:
        return "anything else"
    return f"{decode(prefix)!r}{' and anything else' if other else ''}"
