"""Exactness by exhaustion: every way the rng can fall, through the real engine, against the target's distribution."""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from helpers.model_folders import nightly_for
from helpers.sampling import EOS, EXACT, GREEDY, SAMPLINGS, names
from helpers.seeded_bugs import AUTO_BUGS, BUGS, CHAIN_BLOCK_BUGS, EARLY_STOP_BUGS, LOOKUP_BUGS, Bug, mutated
from specexp.certify.reference_distribution import gap, sequence_distribution

# gamma, vocabulary, output length: as large as a second or two allows. Length >= gamma + 2, for two rounds at least.
SIZES = [(1, 3, 5), (2, 3, 5), (3, 2, 6), (4, 2, 7)]
# From the module of the chain and gamma to a proposer.
Proposing = Callable[[Any, int], Any]
DRAFT: Proposing = lambda chain, gamma: chain.DraftModel(gamma)  # noqa: E731
EARLY: Proposing = lambda chain, gamma: chain.DraftModel(gamma, min_draft_probability=0.4)  # noqa: E731
LOOKUP: Proposing = lambda chain, gamma: chain.Lookup(gamma, max_ngram=2)  # noqa: E731
LIKELIEST: Proposing = lambda chain, gamma: chain.DraftModel(gamma, temperature=0.0)  # noqa: E731
SUFFIX: Proposing = lambda chain, gamma: chain.Suffix(gamma, chain.SuffixLimits(2.0, 0.3))  # noqa: E731
IN_TURN: Proposing = lambda chain, gamma: chain.InTurn(  # noqa: E731
    {
        "suffix": chain.Suffix(gamma, chain.SuffixLimits(), min_match=2),
        "lookup": chain.Lookup(gamma, 2, min_match=2),
        "draft": chain.DraftModel(gamma),
    }
)
# A probability under these drafts, and what they cost, ends chains at every length, 0 included.
AUTO: Proposing = lambda chain, gamma: chain.DraftModel(  # noqa: E731
    gamma, costs=chain.RelativeCosts(0.2, tuple(1 + n / 20 for n in range(gamma + 1)))
)
COOLER: Proposing = lambda chain, gamma: chain.DraftModel(gamma, temperature=0.4)  # noqa: E731
PROPOSING = {
    "draft": DRAFT, "stops early": EARLY, "lookup": LOOKUP, "likeliest": LIKELIEST, "cooler": COOLER, "suffix": SUFFIX,
    "in turn": IN_TURN, "adapts": AUTO,
}  # fmt: skip


def distributions(
    gamma: int | None, vocab: int, length: int, sampling: dict[str, Any], *, eos: bool = True, cached: bool = True,
    bonus: bool = True, seed: int = 3, proposing: Proposing = DRAFT, verification: str = "token",
) -> tuple[dict[Any, float], dict[Any, float]]:  # fmt: skip
    """(the decoder's, the target's own) output distribution; gamma None is plain decoding. Imports what is current."""
    toy = importlib.import_module("specexp.lm.toy")
    engine = importlib.import_module("specexp.engine")
    rules = importlib.import_module("specexp.decoding.rules")
    chain = importlib.import_module("specexp.decoding.chain")
    baseline = importlib.import_module("specexp.decoding.baseline")
    oracle = importlib.import_module("specexp.certify.oracle")
    target = toy.ToyModel(vocab, seed)
    draft = toy.ToyModel(vocab, seed, draft_noise=0.8)
    warp = rules.Warp(**sampling)
    if gamma is None:
        decoder = baseline.Baseline(warp)
    else:
        decoder = chain.Chain(proposing(chain, gamma), chain.Lossless(), warp, bonus, verification)
    stops = [EOS] if eos else []
    got = oracle.output_distribution(
        lambda: engine.Engine({"target": target, "draft": draft}, stops, cached=cached), decoder, [1], length
    )
    return got, sequence_distribution(target, [1], length, EOS if eos else None, **sampling)


@pytest.mark.at_most(fast=15)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("gamma,vocab,length", [(None, 3, 5), *SIZES])
def test_the_output_distribution_is_the_targets(gamma: int | None, vocab: int, length: int, sampling: Any) -> None:
    got, expected = distributions(gamma, vocab, length, sampling)
    assert sum(got.values()) == pytest.approx(1, abs=EXACT)
    assert gap(got, expected) < EXACT


@pytest.mark.at_most(slow=5)
@pytest.mark.slow
@pytest.mark.parametrize("gamma,vocab,length", [(1, 3, 4), (2, 3, 4), (3, 2, 5)])
@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_it_holds_without_an_eos_without_the_bonus_and_without_a_cache(
    gamma: int, vocab: int, length: int, bonus: bool, cached: bool
) -> None:
    got, expected = distributions(gamma, vocab, length, {"temperature": 1.0}, eos=False, cached=cached, bonus=bonus)
    assert gap(got, expected) < EXACT


@pytest.mark.at_most(slow=20)
@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("gamma,vocab,length", SIZES)
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("proposing", PROPOSING)
def test_it_holds_whatever_proposes_and_verifies(
    gamma: int, vocab: int, length: int, proposing: str, verification: str, sampling: Any
) -> None:
    how: dict[str, Any] = {"proposing": PROPOSING[proposing], "verification": verification}
    got, expected = distributions(gamma, vocab, length, sampling, **how)
    assert gap(got, expected) < EXACT
    for options in ({"bonus": False}, {"cached": False}, {"eos": False}):
        got, expected = distributions(gamma, vocab, length - 1, sampling, **options, **how)
        assert gap(got, expected) < EXACT


@pytest.mark.parametrize("gamma,vocab,length", [(2, 3, 4), (4, 2, 6)])
@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=names)
@pytest.mark.parametrize("verification", ["token", "block"])
def test_it_holds_for_chains_that_adapt(gamma: int, vocab: int, length: int, verification: str, sampling: Any) -> None:
    got, expected = distributions(gamma, vocab, length, sampling, proposing=AUTO, verification=verification)
    assert gap(got, expected) < EXACT


@pytest.mark.parametrize("gamma,vocab,length", [(2, 3, 4), (4, 2, 6)])
@pytest.mark.parametrize("sampling", SAMPLINGS[2:4], ids=names)
def test_it_holds_for_blocks(gamma: int, vocab: int, length: int, sampling: Any) -> None:
    got, expected = distributions(gamma, vocab, length, sampling, verification="block")
    assert gap(got, expected) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, {"temperature": 1.0}], ids=names)
def test_several_models(sampling: Any) -> None:
    for seed in range(10, 16):
        got, expected = distributions(2, 3, 5, sampling, seed=seed)
        assert gap(got, expected) < EXACT


def test_a_biased_sampler_fails() -> None:
    bias = Bug("a sampler that likes token 1", "specexp.certify.oracle", "mass = float(weights.sum())",
               "weights = weights * (1 + 1e-6 * (array_namespace(weights).arange(weights.shape[0]) == 1));"
               " mass = float(weights.sum())")  # fmt: skip
    with mutated(bias):
        got, expected = distributions(2, 3, 5, {"temperature": 1.0})
    assert gap(got, expected) > 1e-9


def caught_by(bug: Bug, proposing: Proposing = DRAFT, verification: str = "token") -> str | None:
    """The first check that notices the bug, or None."""
    checks = itertools.product(
        (3, 11), [(2, 3, 5), (4, 2, 7), (None, 3, 4)], SAMPLINGS[:2] + SAMPLINGS[3:], (True, False)
    )
    with mutated(bug), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bug may divide by zero; what comes out of it is the test
        for seed, size, sampling, eos in checks:
            where = f"gamma {size[0]}, {names(sampling)}"
            try:
                got, expected = distributions(
                    *size, sampling, eos=eos, seed=seed, proposing=proposing, verification=verification
                )
            except (AssertionError, IndexError, ValueError) as error:
                return f"{type(error).__name__} at {where}: {error}"
            if not gap(got, expected) < EXACT:
                return f"gap {gap(got, expected):.1e} at {where}"
    return None


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("proposing", nightly_for(PROPOSING, *set(PROPOSING) - {"draft"}))
def test_the_unchanged_package_passes_the_same_checks(proposing: str, verification: str) -> None:
    nothing = Bug("nothing", "specexp.decoding.rules", "p = weights / xp.sum", "p = weights / xp.sum")
    assert caught_by(nothing, PROPOSING[proposing], verification) is None


@pytest.mark.at_most(slow=8)
@pytest.mark.slow
@pytest.mark.parametrize(
    "bug,proposing,verification",
    [
        *((bug, DRAFT, "token") for bug in BUGS),
        *((bug, EARLY, "token") for bug in EARLY_STOP_BUGS),
        *((bug, AUTO, how) for bug in (*EARLY_STOP_BUGS, *AUTO_BUGS) for how in ("token", "block")),
        *((bug, LOOKUP, "token") for bug in LOOKUP_BUGS),
        *((bug, DRAFT, "block") for bug in CHAIN_BLOCK_BUGS),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_seeded_bug_is_caught(
    bug: Bug, proposing: Proposing, verification: str, capsys: pytest.CaptureFixture[str]
) -> None:
    how = caught_by(bug, proposing, verification)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None
