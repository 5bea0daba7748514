"""A draft that reads the target's hidden states, exact by exhaustion: chains and blocks, with and without a cache."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from helpers.toy_head import ToyHead
from specexp.certify.oracle import output_distribution
from specexp.certify.reference_distribution import gap, sequence_distribution
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless
from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.lm.toy import ToyModel

SIZES = {1: (3, 4), 2: (3, 4), 3: (2, 5)}  # by gamma: vocabulary and length of outputs
PROPOSERS: dict[str, Any] = {
    "draft": DraftModel,
    "stops early": lambda gamma: DraftModel(gamma, 0.4),
    "adapts": lambda gamma: DraftModel(gamma, costs=RelativeCosts(0.2, tuple(1 + n / 20 for n in range(gamma + 1)))),
    "in turn": lambda gamma: InTurn({"lookup": Lookup(gamma, 2, 2), "draft": DraftModel(gamma)}),
}


def distributions(decoder: Any, vocabulary: int, length: int, sampling: dict[str, Any], **options: Any) -> Any:
    """(the decoder's, the target's own) output distribution."""
    target = ToyModel(vocabulary, 3)
    models: dict[Any, Any] = {"target": target, "draft": ToyHead(target)}
    got = output_distribution(lambda: Engine(models, [EOS], **options), decoder, [1], length)
    return got, sequence_distribution(target, [1], length, EOS, **sampling)


@pytest.mark.at_most(fast=4)
@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[2], SAMPLINGS[4]], ids=names)
@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("gamma", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_output_distribution_is_the_targets(gamma: int, proposer: str, sampling: Any) -> None:
    for verification, bonus in (("token", True), ("block", True), ("token", False)):
        decoder = Chain(PROPOSERS[proposer](gamma), Lossless(), Warp(**sampling), bonus, verification)  # type: ignore[arg-type]
        got, expected = distributions(decoder, *SIZES[gamma], sampling)
        assert gap(got, expected) < EXACT


@pytest.mark.at_most(slow=10)
@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("gamma", SIZES)
def test_it_holds_for_every_sampling_and_without_a_cache(gamma: int, proposer: str, sampling: Any) -> None:
    for options in ({}, {"cached": False}):
        for verification in ("token", "block"):
            decoder = Chain(PROPOSERS[proposer](gamma), Lossless(), Warp(**sampling), True, verification)  # type: ignore[arg-type]
            got, expected = distributions(decoder, *SIZES[gamma], sampling, **options)
            assert gap(got, expected) < EXACT


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[2]], ids=names)
def test_its_trees_are_exact_too(sampling: Any) -> None:
    for cached in (True, False):
        got, expected = distributions(SpecExec(4, 2, Warp(**sampling), 2), 3, 4, sampling, cached=cached)
        assert gap(got, expected) < EXACT
