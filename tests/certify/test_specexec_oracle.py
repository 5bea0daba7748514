"""SpecExec under the exhaustive oracle: every way the rng can fall, for trees of many shapes, and seeded bugs."""

from __future__ import annotations

import importlib
import itertools
import warnings
from typing import Any

import pytest

from helpers.reference_distribution import tree
from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from helpers.seeded_bugs import TREE_BUGS, Bug, mutated
from specexp.certify.reference_distribution import gap, sequence_distribution

# Vocabulary, output length and whether cached: two rounds at least, behind a full path too.
SIZES = [(3, 4, True), (2, 6, True), (2, 6, False)]
SHAPES: list[dict[str, Any]] = [
    {"tree_budget": 1, "max_depth": 1, "parallel_branches": 1},
    {"tree_budget": 3, "max_depth": 3, "parallel_branches": 1},
    {"tree_budget": 3, "max_depth": 2, "parallel_branches": 2},
    {"tree_budget": 5, "max_depth": 3, "parallel_branches": 1, "branch_width": 3},
    {"tree_budget": 8, "max_depth": 4, "parallel_branches": 3, "branch_width": 2},
    {"tree_budget": 12, "max_depth": 3, "parallel_branches": 4},
    {"tree_budget": 12, "max_depth": 3, "parallel_branches": 4, "branch_prune_threshold": 0.3},
    {"tree_budget": 12, "max_depth": 3, "parallel_branches": 4, "branch_prune_threshold": 1.0},
    {"tree_budget": 12, "max_depth": 3, "parallel_branches": 4, "min_log_prob": -1.5},
    {"tree_budget": 6, "max_depth": 3, "parallel_branches": 2, "branch_prune_threshold": 0.2, "min_log_prob": -2.5},
    {"tree_budget": 6, "max_depth": 3, "parallel_branches": 2, "min_log_prob": 0.0},
]


def distributions(
    shape: dict[str, Any], vocab: int, length: int, sampling: dict[str, Any], *, cached: bool = True, seed: int = 3,
    eos: bool = True, draft_context: int = 64,
) -> tuple[dict[Any, float], dict[Any, float]]:  # fmt: skip
    """(the decoder's, the target's own) output distribution. Imports what is current."""
    toy = importlib.import_module("specexp.lm.toy")
    engine = importlib.import_module("specexp.engine")
    rules = importlib.import_module("specexp.decoding.rules")
    specexec = importlib.import_module("specexp.decoding.specexec")
    oracle = importlib.import_module("specexp.certify.oracle")
    target = toy.ToyModel(vocab, seed)
    draft = toy.ToyModel(vocab, seed, draft_noise=0.8, context=draft_context)
    stops = [EOS] if eos else []
    decoder = specexec.SpecExec(warp=rules.Warp(**sampling), **shape)
    got = oracle.output_distribution(
        lambda: engine.Engine({"target": target, "draft": draft}, stops, cached=cached), decoder, [1], length
    )
    return got, sequence_distribution(target, [1], length, EOS if eos else None, **sampling)


@pytest.mark.at_most(fast=30)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: ",".join(map(str, shape.values())))
def test_the_output_distribution_is_the_targets(shape: dict[str, Any], sampling: dict[str, Any]) -> None:
    for vocab, length, cached in SIZES:
        got, expected = distributions(shape, vocab, length, sampling, cached=cached)
        assert sum(got.values()) == pytest.approx(1, abs=EXACT)
        assert gap(got, expected) < EXACT


@pytest.mark.at_most(fast=4)
@pytest.mark.parametrize("budget", range(1, 13))
def test_it_holds_for_every_budget_and_width(budget: int) -> None:
    for width in range(1, 5):
        shape = {"tree_budget": budget, "max_depth": 2, "parallel_branches": 2, "branch_width": width}
        got, expected = distributions(shape, 4, 3, {"temperature": 1.0}, eos=False)
        assert gap(got, expected) < EXACT


@pytest.mark.parametrize("context", [1, 2, 3, 4, 5])
def test_it_holds_where_the_drafts_context_ends(context: int) -> None:
    got, expected = distributions(SHAPES[5], 2, 6, {"temperature": 1.0}, draft_context=context)
    assert gap(got, expected) < EXACT


def grown_as_by_a_slow_search(shape: dict[str, Any], *, cached: bool = True, seed: int = 3) -> bool:
    """Whether every tree that the target is asked about is the one a search without a cache finds."""
    toy = importlib.import_module("specexp.lm.toy")
    asks = importlib.import_module("specexp.decoding.protocol")
    engine = importlib.import_module("specexp.engine")
    rules = importlib.import_module("specexp.decoding.rules")
    rng = importlib.import_module("specexp.decoding.rng")
    specexec = importlib.import_module("specexp.decoding.specexec")
    target, draft = toy.ToyModel(5, seed), toy.ToyModel(5, seed, draft_noise=0.4)
    inner = specexec.SpecExec(warp=rules.Warp(1.0), **shape)
    length, pairs = 24, []

    class Spy:
        models = inner.models

        def steps(self, rng: Any, remaining_tokens: int) -> Any:
            steps, answer, ids = inner.steps(rng, remaining_tokens), None, [1]
            while True:
                try:
                    ask = steps.send(answer)
                except StopIteration:
                    return
                if isinstance(ask, asks.Score) and ask.model == "target":
                    paths: list[tuple[int, ...]] = []
                    for token, parent in zip(ask.tokens or [], ask.parents or [], strict=True):
                        paths.append((*(paths[parent] if parent >= 0 else ()), token))
                    depth = min(inner.max_depth, length - len(ids))
                    more = (inner.branch_prune_threshold, -9e9 if inner.min_log_prob is None else inner.min_log_prob)
                    search = tree(draft, ids, depth, inner.tree_budget, inner.parallel_branches, inner.width, *more)
                    pairs.append((set(paths), search))
                if isinstance(ask, asks.Round):
                    ids = [*ids, *(int(token) for token in ask.tokens[: int(ask.num_tokens)])]
                answer = yield ask

    driver = engine.Engine({"target": target, "draft": draft}, cached=cached)
    driver.generate(Spy(), [1], length, rng.HashRng.of(seed, "p"))
    assert len(pairs) > 1
    return all(got == expected for got, expected in pairs)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: ",".join(map(str, shape.values())))
def test_the_tree_is_that_of_a_slow_search(shape: dict[str, Any], cached: bool) -> None:
    for seed in range(6):
        assert grown_as_by_a_slow_search(shape, cached=cached, seed=seed)


def caught_by(bug: Bug) -> str | None:
    """The first check that notices the bug, or None: the output distribution, then the trees."""
    shapes = (SHAPES[4], SHAPES[5], SHAPES[9])
    with mutated(bug), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            for seed, shape, sampling in itertools.product((3, 11), shapes, SAMPLINGS[:2] + SAMPLINGS[4:5]):
                got, expected = distributions(shape, 3, 4, sampling, seed=seed)
                if not gap(got, expected) < EXACT:
                    return f"gap {gap(got, expected):.1e} at budget {shape['tree_budget']}, {names(sampling)}"
            for seed, shape in itertools.product((3, 11), shapes):
                if not grown_as_by_a_slow_search(shape, seed=seed):
                    return f"another tree than a slow search's, budget {shape['tree_budget']}"
        except (AssertionError, IndexError, ValueError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
    return None


def test_the_unchanged_package_passes_the_same_checks() -> None:
    assert caught_by(Bug("nothing", "specexp.decoding.tree", "ROOT = -1", "ROOT = -1")) is None


@pytest.mark.slow
@pytest.mark.parametrize("bug", TREE_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = caught_by(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None
