"""The rng: fair, independent, keyed by what they are for, and the same on numpy and torch.

Statistical tests run on fixed seeds, so they cannot flake; their bounds are those of a correct generator at 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from specexp.decoding.rng import ACCEPT, DRAFT, RESIDUAL, TARGET, HashRng

UNLIKELY = 1e-6


def noise(rng: HashRng, positions: int = 64, tokens: int = 512, purpose: int = DRAFT) -> np.ndarray:
    where, token = np.arange(positions)[:, None], np.arange(tokens)[None, :]
    return rng.uniform(where, where * 0 + purpose, token)


def test_noise_is_uniform_and_uncorrelated() -> None:
    u = noise(HashRng.of(0, "p"))
    assert stats.kstest(u.ravel(), "uniform").pvalue > UNLIKELY
    others = [
        noise(HashRng.of(1, "p")),
        noise(HashRng.of(0, "q")),
        noise(HashRng.of(0, "p", turn=1)),
        noise(HashRng.of(0, "p"), purpose=ACCEPT),
    ]
    for a, b in [(u[:-1], u[1:]), (u[:, :-1], u[:, 1:]), *((u, other) for other in others)]:
        assert stats.pearsonr(a.ravel(), b.ravel()).pvalue > UNLIKELY


def test_no_two_keys_share_their_noise() -> None:
    values = np.concatenate(
        [noise(HashRng.of(s, "p"), purpose=purpose).ravel() for s in range(2) for purpose in (1, 2, 3, 4)]
    )
    # 2**18 draws of 32 bits: about 8 pairs agree by chance.
    assert len(values) - len(np.unique(values)) < 30


def test_numpy_and_torch_throw_the_same() -> None:
    rng = HashRng.of(7, "prompt")
    numbers = np.random.default_rng(0)
    where, token = torch.arange(64)[:, None], torch.arange(512)[None, :]
    assert np.array_equal(rng.uniform(where, where * 0 + DRAFT, token).numpy(), noise(rng))
    for position in range(50):
        p = numbers.dirichlet(np.ones(40) * 0.3)
        assert int(rng.pick(p, position, TARGET)) == int(rng.pick(torch.from_numpy(p), position, TARGET))
        a, b = (
            rng.accept_prefix(p[:8] * 8, None, position),
            rng.accept_prefix(torch.from_numpy(p[:8] * 8), None, position),
        )
        assert int(a[0]) == int(b[0])
        assert a[1].tolist() == b[1].tolist()


@pytest.mark.parametrize("purpose", [DRAFT, RESIDUAL, TARGET])
def test_picks_follow_the_weights(purpose: int) -> None:
    weights = np.array([0.5, 0.0, 3.0, 1.0, 0.5])  # not normalised
    rng = HashRng.of(3, "p")
    counts = np.bincount([int(rng.pick(weights, i, purpose)) for i in range(4000)], minlength=5)
    assert counts[1] == 0
    seen = weights > 0
    assert stats.chisquare(counts[seen], 4000 * weights[seen] / weights.sum()).pvalue > UNLIKELY


def test_a_streak_stops_at_the_first_failure_unless_it_is_waived() -> None:
    prob = np.array([1.0, 0.0, 1.0, 0.0])
    rng = HashRng.of(0, "p")
    num, passed = rng.accept_prefix(prob, None, 0)
    assert (int(num), passed.tolist()) == (1, [True, False, True, False])
    assert int(rng.accept_prefix(prob, np.array([False, True, False, False]), 0)[0]) == 3
    assert int(rng.accept_prefix(prob, np.ones(4, dtype=bool), 0)[0]) == 4


def test_streak_lengths_follow_the_probabilities() -> None:
    rng, prob = HashRng.of(1, "p"), np.array([0.8, 0.5, 0.9])
    lengths = np.bincount([int(rng.accept_prefix(prob, None, 3 * i)[0]) for i in range(4000)], minlength=4)
    expected = np.array([0.2, 0.8 * 0.5, 0.4 * 0.1, 0.4 * 0.9])
    assert stats.chisquare(lengths, 4000 * expected).pvalue > UNLIKELY


def test_the_token_behind_a_full_chain_shares_its_luck_with_plain_decoding() -> None:
    rng, weights = HashRng.of(2, "p"), np.array([0.3, 0.3, 0.4])
    for start in range(40):
        behind_all = rng.sample_next(weights, start, np.asarray(5), 5)
        assert int(behind_all) == int(rng.pick(weights, start + 5, TARGET))
        corrected = rng.sample_next(weights, start, np.asarray(2), 5)
        assert int(corrected) == int(rng.pick(weights, start + 2, RESIDUAL))


@pytest.mark.slow
def test_sampling_on_torch_follows_the_targets_distribution() -> None:
    """Joint distribution of two tokens, by chi-square; a biased control must fail the same test."""
    from specexp.certify import reference_distribution
    from specexp.decoding.chain import Chain, DraftModel, Lossless
    from specexp.decoding.rules import Warp
    from specexp.engine import Engine
    from specexp.lm.toy import ToyModel

    target, draft = ToyModel(4, 5), ToyModel(4, 5, draft_noise=0.7)
    runs, warp = 3000, Warp(0.9)
    engine = Engine({"target": target, "draft": draft})
    chain = Chain(DraftModel(3), Lossless(), warp)
    outputs = [tuple(engine.generate(chain, [1], 2, HashRng.of(s, "p")).token_ids) for s in range(runs)]

    def p_value(temperature: float) -> float:
        shares = reference_distribution.sequence_distribution(target, [1], 2, None, temperature=temperature)
        return float(stats.chisquare([outputs.count(k) for k in shares], [runs * v for v in shares.values()]).pvalue)

    assert p_value(0.9) > UNLIKELY
    assert p_value(0.7) < UNLIKELY
