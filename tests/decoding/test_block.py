"""Block verification: never shorter than token verification over the same drafts, and with draws of its own."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from helpers.sampling import EXACT
from helpers.seeded_bugs import SHARED_DRAWS, Bug, mutated
from specexp.certify import chi_square
from specexp.certify.reference_distribution import sequence_distribution
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import HashRng
from specexp.decoding.rules import Warp, one_hot, verify, verify_block
from specexp.engine import Engine
from specexp.errors import ModelError
from specexp.lm.toy import ToyModel

LENGTH, VOCAB, GAMMA = 5, 2, 4


class Expecting:
    """Accepts nothing, and keeps the probabilities of accepting 0, 1, ... drafts in `chances`."""

    chances: list[float]

    def pick(self, weights: Any, position: int, purpose: int) -> Any:
        return np.asarray(0)

    def sample_next(self, weights: Any, position: int, num_accepted: Any, num_drafted: int) -> Any:
        return np.asarray(0)

    def of_round(self, start: Any) -> Expecting:
        return self

    def accept_prefix(self, prob: Any, accepted_anyway: Any, position: int) -> Any:
        alive = [1.0, *np.cumprod(prob)]
        self.chances = [a * (1 - b) for a, b in zip(alive, [*prob, 0.0], strict=True)]
        return np.asarray(0), prob > 0

    def accept_longest(self, prob: Any, position: int) -> Any:
        fail = [*np.cumprod(1 - prob[::-1])[::-1], 1.0]  # from each test on, all fail
        self.chances = [chance * rest for chance, rest in zip([1.0, *prob], fail, strict=True)]
        return np.asarray(0)


def expected_length(block: bool, p: Any, q: Any, gamma: int, vocab: int) -> float:
    """Of all drafts x_1..x_gamma from the trees of distributions p and q, by prefix: how many are accepted on average,
    in exact enumeration."""
    total = 0.0
    for drafted in itertools.product(range(vocab), repeat=gamma):
        rows_p = np.array([p[drafted[:i]] for i in range(gamma + 1)])
        rows_q = np.array([q[drafted[:i]] for i in range(gamma)])
        rng, tokens = Expecting(), np.array(drafted)
        if block:
            verify_block(rows_p, rows_q, tokens, rng, 0)
        else:
            verify(rows_p, rows_q, tokens, None, rng, 0)
        assert sum(rng.chances) == pytest.approx(1, abs=EXACT)
        chance = np.prod([rows_q[i, x] for i, x in enumerate(drafted)])
        total += chance * sum(n * each for n, each in enumerate(rng.chances))
    return float(total)


def test_a_block_is_never_shorter_over_the_same_drafts() -> None:
    longer = 0
    for seed, (gamma, vocab) in itertools.product(range(40), [(1, 3), (2, 3), (3, 3), (4, 2)]):
        numbers = np.random.default_rng([seed, gamma])
        prefixes = [each for n in range(gamma + 1) for each in itertools.product(range(vocab), repeat=n)]
        p, q = ({each: numbers.dirichlet(np.ones(vocab)) for each in prefixes} for _ in range(2))
        token, block = (expected_length(block, p, q, gamma, vocab) for block in (False, True))
        assert block >= token - EXACT, (seed, gamma)
        assert gamma > 1 or block == pytest.approx(token, abs=EXACT)  # of one token it is the same test
        longer += block > token + 1e-3
    assert longer >= 100  # of the 120 with more than one token


def test_a_draft_that_is_the_target_is_accepted_whole() -> None:
    p = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.3, 0.7]])
    for seed in range(50):
        result = verify_block(p, p[:3], np.array([1, 0, 0]), HashRng.of(seed, "p"), 0)
        assert int(result.num_accepted) == 3


@pytest.mark.parametrize("gamma", range(5))
def test_numpy_and_torch_verify_blocks_alike(gamma: int) -> None:
    for seed in range(20):
        numbers = np.random.default_rng([seed, gamma])
        warp = Warp(0.8)
        p, q = warp(2 * numbers.standard_normal((gamma + 1, 7))), warp(2 * numbers.standard_normal((gamma, 7)))
        tokens = np.array([HashRng.of(seed, "draft").pick(row, i, 1) for i, row in enumerate(q)], dtype=np.int64)
        rng = HashRng.of(seed, "x")
        one, other = verify_block(p, q, tokens, rng, 4), verify_block(*map(torch.from_numpy, (p, q, tokens)), rng, 4)
        assert one.tokens.tolist() == other.tokens.tolist()
        assert int(one.num_accepted) == int(other.num_accepted)


def test_likeliest_drafts_are_one_hot() -> None:
    like = np.zeros((1, 4), dtype=np.float32)
    assert one_hot(np.array([2, 0]), like).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert one_hot(np.array([2]), like).dtype == np.float32


def p_value(samples: int) -> float:
    """Of the package as it is imported now: outputs of block verification with its real rng, in a chi-square test."""
    engine, chain = (importlib.import_module(f"specexp.{name}") for name in ("engine", "decoding.chain"))
    rng, rules = (importlib.import_module(f"specexp.decoding.{name}") for name in ("rng", "rules"))
    toy = importlib.import_module("specexp.lm.toy")
    models = {"target": toy.ToyModel(VOCAB, 3), "draft": toy.ToyModel(VOCAB, 3, draft_noise=0.8)}
    decoder = chain.Chain(chain.DraftModel(GAMMA), chain.Lossless(), rules.Warp(1.0), verification="block")
    requests = (
        importlib.import_module("specexp.engine.engine").Request(decoder, [1], LENGTH, rng.HashRng.of(0, f"{i}"))
        for i in range(samples)
    )
    expected = sequence_distribution(ToyModel(VOCAB, 3), [1], LENGTH, None, temperature=1.0)
    outputs = list(expected)
    counts = np.zeros(len(outputs), dtype=int)
    for _, out in engine.Engine(models, max_batch_size=32).generate_all(requests):
        counts[outputs.index(tuple(out.token_ids))] += 1
    return float(chi_square.compare(counts, np.array([expected[each] for each in outputs])).p)


@pytest.mark.slow
def test_its_draws_are_its_rounds_own() -> None:
    assert p_value(4000) > 0.001


@pytest.mark.nightly
@pytest.mark.parametrize("bug", SHARED_DRAWS, ids=lambda bug: bug.name)
def test_draws_that_rounds_share_are_seen(bug: Bug) -> None:
    with mutated(bug):
        result = p_value(30_000)
    print(f"\n  seeded bug: {bug.name}: p {result:.1e}", end="")
    assert result < 1e-6


@pytest.mark.nightly
def test_as_many_outputs_without_a_bug_follow_the_target() -> None:
    assert p_value(30_000) > 0.001


def test_logits_behind_the_accepted_tokens_that_are_no_numbers_are_noticed() -> None:
    """A block reads all rows: NaN in the last one moves what is accepted."""

    class Broken(ToyModel):
        def rows(self, before: Any, tokens: Any, positions: Any) -> Any:
            logits, hidden = super().rows(before, tokens, positions)
            return np.where((np.asarray(positions) == 5)[:, None], np.nan, logits), hidden

    models = {"target": Broken(5, 3), "draft": ToyModel(5, 3, draft_noise=2.0)}
    decoder = Chain(DraftModel(4), Lossless(), Warp(1.0), verification="block")
    for seed in range(20):
        with pytest.raises(ModelError, match="gives NaN logits"):
            Engine(models).generate(decoder, [1, 2], 5, HashRng.of(seed, "p"))
