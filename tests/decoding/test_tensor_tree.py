"""The tree that arrays grow is the one that the host grows: node for node, on numpy and on torch.

Logits are random, and for ties whole numbers. `expand` checks what it is asked: padding must not look like a node.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from specexp.decoding.protocol import TREE_COUNTS, GrownTree, GrowTree, Score, Scored
from specexp.decoding.rules import best
from specexp.decoding.specexec import by_row, grow
from specexp.decoding.tensor_tree import TreeSizes, grow_tree
from specexp.decoding.tree import Tree

SHAPES = [  # budget, depth, branches, width
    (1, 1, 1, 1), (1, 3, 2, 4), (3, 3, 1, 1), (5, 3, 1, 3), (8, 4, 3, 2), (12, 3, 4, 4), (64, 2, 4, 4), (300, 4, 3, 5),
    (16, 9, 2, 2), (7, 5, 8, 3), (24, 6, 5, 12), (2, 6, 4, 4),
]  # fmt: skip
PRUNING: list[dict[str, float]] = [
    {}, {"threshold": 0.3}, {"threshold": 1.0}, {"min_log_prob": -2.5}, {"threshold": 0.2, "min_log_prob": -3.0},
    {"min_log_prob": 0.0}, {"threshold": math.exp(-1)},
]  # fmt: skip


class Draft:
    """Logits that depend on the whole path: a row of a table for each state, which a parent and a token decide."""

    def __init__(self, vocab: int, kind: str, dtype: Any, array: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        table = rng.integers(-2, 3, (61, vocab)) if kind == "ties" else rng.normal(0, 2, (61, vocab))
        table = table.astype(dtype)
        if kind == "never":  # some ids are never emitted
            table[:, rng.random(vocab) < 0.4] = -np.inf
            table[:, 0] = 0
        self.table, self.array = table, array
        self.states: list[int] = [1]  # of the root, then of each slot

    def row(self, state: int) -> np.ndarray:
        return self.table[state % 61]

    def feed(self, tokens: list[int], parents: list[int]) -> np.ndarray:
        before = len(self.states) - 1
        assert all(-1 <= parent < before for parent in parents)
        fresh = [
            (self.states[parent + 1] * 31 + token * 7 + 3) % 9973 for token, parent in zip(tokens, parents, strict=True)
        ]
        self.states += fresh
        return np.stack([self.row(state) for state in fresh])

    def expand(self, tokens: Any, parents: Any, depths: Any, first: Any) -> Any:
        """Padding is overwritten by the next level: slots are given by `first`."""
        (start,) = np.asarray(first).tolist()
        assert start <= len(self.states) - 1, "slots without a token"
        assert np.asarray(depths).min() >= 1
        self.states = self.states[: start + 1]
        return self.array(self.feed(np.asarray(tokens).tolist(), np.asarray(parents).tolist()))

    @property
    def root(self) -> Any:
        return self.array(self.row(1)[None])


def on_the_host(ask: GrowTree, depth: int, draft: Draft) -> Tree:
    """The tree of the host's own loop."""
    steps = grow(ask)
    assert next(steps) == ask
    answer: Any = depth
    while True:
        try:
            score: Any = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        assert isinstance(score, Score)
        first, tokens, parents = len(draft.states) - 1, score.tokens, score.parents
        rows = draft.row(1)[None] if tokens is None else draft.feed(tokens, parents)  # type: ignore[arg-type]
        logprob, ids = best(draft.array(rows), ask.width)
        answer = Scored(None, None, first, logprob.tolist(), ids.tolist())


def assert_same(tree: Tree, got: GrownTree, places: int) -> None:
    grown, table = tree.grown(), np.asarray(got.table)
    num = len(grown)
    assert table.shape == (4, places + 1)
    assert table[:, : num + 1].tolist() == by_row(grown)
    assert (table[:, num + 1 :] == -1).all(), "padding is a node"
    assert np.asarray(got.depths)[:num].tolist() == [node.depth for node, _ in grown]
    assert (np.asarray(got.depths) >= 1).all()
    scores = [node.score if node.score > -math.inf else np.finfo(np.float64).min for node, _ in grown]
    assert np.asarray(got.scores)[:num].tolist() == scores
    assert (np.asarray(got.scores)[num:] == -math.inf).all()
    assert dict(zip(TREE_COUNTS, np.asarray(got.counts).tolist(), strict=True)) == tree.counts()
    above: list[set[int]] = []
    for row, (_, parent) in enumerate(grown):
        above.append({row, *(above[parent] if parent >= 0 else ())})
    assert [set(np.flatnonzero(row).tolist()) for row in np.asarray(got.sees)[:num]] == above
    assert np.isfinite(np.asarray(got.peak)).all()


def arrays(library: str) -> Any:
    return torch.from_numpy if library == "torch" else (lambda x: x)


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", ["random", "ties", "never"])
def test_it_is_the_tree_of_the_host(kind: str, dtype: Any, library: str) -> None:
    array, whole, cut = arrays(library), 0, 0
    numbers = random.Random(f"{kind} {library} {np.dtype(dtype)}")  # whatever tests ran before
    for number, (shape, vocab) in enumerate((shape, vocab) for shape in SHAPES for vocab in (1, 2, 5, 40)):
        for more in numbers.sample(PRUNING, 2) if number % 8 else PRUNING:
            ask = GrowTree(*shape, **more)
            for depth in {1, ask.max_depth, numbers.randint(1, ask.max_depth)}:
                seed = numbers.randrange(10**6)
                tree = on_the_host(ask, depth, Draft(vocab, kind, dtype, array, seed))
                draft = Draft(vocab, kind, dtype, array, seed)
                got = grow_tree(ask, array(np.array([depth])), draft.root, draft.expand)
                assert_same(tree, got, TreeSizes.of(ask, vocab).places)
                whole, cut = whole + (len(tree.nodes) == len(tree.kept)), cut + (len(tree.nodes) > len(tree.kept))
    assert whole > 20
    assert cut > 20


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_level_that_expands_nothing_may_be_skipped(library: str) -> None:
    """As a recording does on a device: nothing but the flag decides."""
    array, numbers = arrays(library), random.Random(5)
    ran: list[bool] = []

    def when(flag: Any, body: Any) -> None:
        ran.append(bool(flag))
        if flag:
            body()

    for shape in SHAPES:
        for depth in range(1, shape[1] + 1):
            ask = GrowTree(*shape, threshold=0.4)
            seed = numbers.randrange(10**6)
            tree = on_the_host(ask, depth, Draft(9, "ties", np.float32, array, seed))
            draft = Draft(9, "ties", np.float32, array, seed)
            before = ran.count(True)
            got = grow_tree(ask, array(np.array([depth])), draft.root, draft.expand, when)
            assert_same(tree, got, TreeSizes.of(ask, 9).places)
            assert ran.count(True) - before == tree.num_draft_calls - 1, "a forward too many, or too few"
    assert ran.count(False) > 20


def test_sizes_are_the_least_that_hold_every_tree() -> None:
    """Some logits fill them: no width is padded that no tree needs."""
    for shape in [(12, 3, 4, 4), (64, 2, 4, 4), (7, 5, 8, 3), (3, 3, 1, 1)]:
        ask = GrowTree(*shape)
        sizes, most = TreeSizes.of(ask, 40), 0
        rows = [0] * len(sizes.rows)
        for seed in range(40):
            draft = Draft(40, "ties", np.float32, lambda x: x, seed)
            tree = on_the_host(ask, ask.max_depth, draft)
            most = max(most, len(tree.kept))
            rows[0] = 1
            slots = sorted((node.slot, node.depth) for node in tree.nodes if node.slot >= 0)
            assert len(slots) <= sizes.slots
        assert most == sizes.places == min(shape[0], sum(sizes.rows) * shape[3])
    assert TreeSizes.of(GrowTree(300, 4, 3, 5), 40).rows == (1, 3, 3, 3)
    assert TreeSizes.of(GrowTree(300, 4, 3, 5), 2).rows == (1, 2, 3, 3)
    assert TreeSizes.of(GrowTree(300, 4, 3, 5), 1) == TreeSizes((1, 1, 1, 1), 4)


def test_logits_that_are_no_numbers_are_noticed() -> None:
    for bad in (np.nan, np.inf):
        draft = Draft(9, "random", np.float32, lambda x: x, 3)
        draft.table[1:] = np.where(np.arange(9) == 4, bad, draft.table[1:])
        with np.errstate(invalid="ignore"):
            got = grow_tree(GrowTree(8, 3, 2, 2), np.array([3]), draft.root, draft.expand)
        assert not np.isfinite(got.peak).all()
