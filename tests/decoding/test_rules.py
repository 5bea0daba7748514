"""Warps and the verifying rule, against a slow reference, and the same on numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from specexp import config
from specexp.certify import reference_distribution
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import TARGET, CertainRng, HashRng, rng_for
from specexp.decoding.rules import LEAST_TEMPERATURE, Warp, verify, verify_block
from specexp.engine import Engine
from specexp.errors import ConfigError
from specexp.serving import requests

logit_rows = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 9)), elements=st.integers(-4, 4).map(float))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(logit_rows, st.sampled_from([0.0, 0.5, 1.0, 1.7]), st.integers(0, 5), st.sampled_from([0.3, 0.75, 1.0]))
def test_warps_follow_the_definition_ties_included(logits: Any, temperature: float, top_k: int, top_p: float) -> None:
    """Integer logits tie often; of equal ones the lower id ranks first."""
    got = Warp(temperature, top_k, top_p)(logits)
    for row, p in zip(logits, got, strict=True):
        expected = reference_distribution.warp(row.tolist(), temperature, top_k, top_p)
        # A nucleus that ends exactly at top_p may go either way in the last bit of a sum.
        if top_p < 1 and np.count_nonzero(p) != np.count_nonzero(expected):
            mass = np.sort(reference_distribution.warp(row.tolist(), temperature, top_k))[::-1].cumsum()
            assert np.min(np.abs(mass - top_p)) < 1e-12
        else:
            assert np.allclose(p, expected, atol=1e-14)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(logit_rows, st.sampled_from([0.0, 0.8]), st.integers(0, 4), st.sampled_from([0.6, 1.0]))
def test_numpy_and_torch_warp_alike(logits: Any, temperature: float, top_k: int, top_p: float) -> None:
    logits = logits + np.arange(logits.shape[1]) * 1e-3  # no ties: their nucleus may differ in the last bit
    warp = Warp(temperature, top_k, top_p)
    assert np.allclose(warp(logits), warp(torch.from_numpy(logits)).numpy(), atol=1e-14)


def test_temperature_0_is_exactly_one_hot() -> None:
    p = Warp(0.0)(np.array([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]))
    assert p.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    "bad", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_impossible_warps_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} is .*must be"):
        Warp(**bad)


def example(seed: int, drafted: int = 3, vocab: int = 7, temperature: float = 1.0) -> tuple[Any, Any, Any]:
    numbers = np.random.default_rng(seed)
    warp = Warp(temperature)
    p, q = warp(2 * numbers.standard_normal((drafted + 1, vocab))), warp(2 * numbers.standard_normal((drafted, vocab)))
    tokens = np.array([HashRng.of(seed, "draft").pick(row, i, 1) for i, row in enumerate(q)], dtype=np.int64)
    return p, q, tokens


@pytest.mark.parametrize("seed", range(20))
def test_numpy_and_torch_verify_alike(seed: int) -> None:
    p, q, tokens = example(seed)
    for accepted_anyway in (None, np.array([True, False, True])):
        rng = HashRng.of(seed, "x")
        one = verify(p, q, tokens, accepted_anyway, rng, 4)
        other = verify(
            *map(torch.from_numpy, (p, q, tokens)),
            None if accepted_anyway is None else torch.from_numpy(accepted_anyway),
            rng,
            4,
        )
        assert one.tokens.tolist() == other.tokens.tolist()
        for name in ("num_accepted", "num_judged"):
            assert int(getattr(one, name)) == int(getattr(other, name))
        assert one.overlap.tolist() == pytest.approx(other.overlap.tolist())


def test_certain_dice_fall_like_any_other_on_one_hot_distributions() -> None:
    for seed in range(50):
        p, q, tokens = example(seed, temperature=0.0)
        one, other = (verify(p, q, tokens, None, rng, 0) for rng in (CertainRng(), HashRng.of(seed, "x")))
        assert one.tokens.tolist() == other.tokens.tolist()
        assert int(one.num_accepted) == int(other.num_accepted)


def test_a_waived_token_is_accepted_and_counted_as_judged() -> None:
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    q = np.array([[0.0, 1.0], [1.0, 0.0]])
    verdict = verify(p, q, np.array([1, 0]), np.array([True, False]), CertainRng(), 0)
    assert verdict.tokens.tolist() == [1, 0, 1]
    assert (int(verdict.num_accepted), int(verdict.num_judged)) == (2, 1)
    assert verdict.overlap.tolist() == [0.0, 1.0]


def test_nothing_drafted_is_one_plain_step() -> None:
    p = np.array([[0.0, 1.0, 0.0]])
    verdict = verify(p, np.zeros((0, 3)), np.zeros(0, dtype=np.int64), None, CertainRng(), 0)
    assert verdict.tokens.tolist() == [1]
    assert int(verdict.num_accepted) == 0


@pytest.mark.parametrize("test", [verify, verify_block], ids=["token", "block"])
def test_nothing_drafted_draws_what_plain_decoding_draws_and_no_more(test: Any) -> None:
    class Alone(HashRng):
        def accept_prefix(self, *args: Any) -> Any:
            raise AssertionError("a draw for no token")

        accept_longest = sample_next = accept_prefix  # type: ignore[assignment]

    p, rng = np.random.default_rng(1).dirichlet(np.ones(9), size=1), Alone.of(3, "p")
    for position in range(40):
        empty = np.zeros((0, 9)), np.zeros(0, dtype=np.int64)
        verdict = test(p, *empty, *((None,) if test is verify else ()), rng, position)
        assert verdict.tokens.tolist() == [int(HashRng.of(3, "p").pick(p[0], position, TARGET))]
        assert (int(verdict.num_accepted), verdict.num_judged, verdict.overlap.tolist()) == (0, 0, [])


def test_a_residual_without_mass_falls_back_to_p() -> None:
    """p = q up to rounding, yet rejected: there is nothing left to draw from but p."""

    class Rejecting(CertainRng):
        def accept_prefix(self, prob: Any, accepted_anyway: Any, position: int) -> Any:
            return np.asarray(0), np.zeros(prob.shape[0], dtype=bool)

    p = np.array([[0.25, 0.75], [0.5, 0.5]])
    verdict = verify(p, p[:1], np.array([0]), None, Rejecting(), 0)
    assert verdict.tokens.tolist()[0] == 1


def test_a_tiny_temperature_is_greedy_not_nan() -> None:
    logits = np.array([[1.0, 3.0, 2.0]], dtype=np.float32)
    with np.errstate(over="ignore"):  # minus infinity is what the others' exponents should be
        assert Warp(1e-38)(logits).tolist() == [[0.0, 1.0, 0.0]]


TINY = (LEAST_TEMPERATURE / 2, 1e-38, 1e-40, 1e-45, 1e-46, 1e-320, 5e-324)
ROW = [[1.0, 3.0, 3.0, float("-inf"), -2e38]]
AS_ARRAYS: dict[str, Any] = {
    "numpy float64": lambda: np.array(ROW),
    "numpy float32": lambda: np.array(ROW, dtype=np.float32),
    "torch float32": lambda: torch.tensor(ROW),
    "torch bfloat16": lambda: torch.tensor(ROW, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("kind", AS_ARRAYS)
def test_temperatures_that_underflow_are_greedy(kind: str) -> None:
    logits = AS_ARRAYS[kind]()
    for temperature in TINY:
        for warp in (Warp(temperature), Warp(temperature, top_k=2, top_p=0.5)):
            assert warp.greedy
            assert warp(logits).tolist() == Warp(0.0)(logits).tolist() == [[0, 1, 0, 0, 0]]
        assert isinstance(rng_for(temperature, 0, "p"), CertainRng)
    with np.errstate(over="ignore"):
        least = Warp(LEAST_TEMPERATURE)(logits)
    assert not Warp(LEAST_TEMPERATURE).greedy
    assert least.tolist() == [[0, 0.5, 0.5, 0, 0]]


def test_a_setting_or_a_request_below_the_least_temperature_is_temperature_0() -> None:
    for temperature in TINY:
        assert config.resolve("toy_quick", {"temperature": temperature}).temperature == 0
        assert requests.settings(config.resolve("toy_quick"), {"temperature": temperature}, 64).temperature == 0
    assert config.resolve("toy_quick", {"temperature": LEAST_TEMPERATURE}).temperature == LEAST_TEMPERATURE


def test_a_model_in_float32_decodes_text_at_a_temperature_that_underflows(pair: Any) -> None:
    engine = Engine(pair("llama"))
    outputs = [
        engine.generate(decoder, [5, 9, 11], 12, rng_for(temperature, 0, "p")).token_ids
        for temperature in (0.0, 1e-320)
        for decoder in (Baseline(Warp(temperature)), Chain(DraftModel(4), Lossless(), Warp(temperature)))
    ]
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]
    assert len(set(outputs[0])) > 2


def test_top_p_1_is_off_behind_top_k() -> None:
    p = Warp(1.0, top_k=100)(np.zeros((1, 200), dtype=np.float32))
    assert np.count_nonzero(p) == 100


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("top_p,kept", [(0.5, 1), (0.5 + 2**-30, 2), (0.75, 2), (0.875, 3), (1.0, 4)])
def test_a_nucleus_ends_with_the_token_that_reaches_its_mass(array: Any, top_p: float, kept: int) -> None:
    """Probabilities of 1/2, 1/4, 1/8, 1/8, exact in binary: the mass is reached, not passed."""
    logits = np.log2(np.array([[1 / 4, 1 / 8, 1 / 2, 1 / 8]])) * np.log(2.0)
    assert np.allclose(Warp(1.0)(logits), [[1 / 4, 1 / 8, 1 / 2, 1 / 8]], atol=1e-15)
    p = Warp(1.0, top_p=top_p)(array(logits))
    assert int((p > 0).sum()) == kept
