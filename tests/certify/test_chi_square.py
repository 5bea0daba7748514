"""The chi-square test of a certificate: exact cells, the right size under the target, and the power it claims."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from specexp.certify import chi_square
from specexp.certify.chi_square import Cells, Prefix

V, LENGTH, EOS = 7, 3, 0
SAMPLES = 2000


def row(prefix: Prefix) -> Any:
    """A distribution for every prefix, of no two alike."""
    rng = np.random.default_rng([11, *prefix])
    return rng.dirichlet(np.full(V, 0.6))


def outputs() -> dict[Prefix, float]:
    """Every output and its exact probability: LENGTH tokens, or fewer up to EOS."""
    masses: dict[Prefix, float] = {}

    def go_on(prefix: Prefix, mass: float) -> None:
        if len(prefix) == LENGTH or (prefix and prefix[-1] == EOS):
            masses[prefix] = mass
            return
        for token, share in enumerate(row(prefix)):
            go_on((*prefix, token), mass * share)

    go_on((), 1.0)
    return masses


@pytest.fixture(scope="module")
def cells() -> Cells:
    return chi_square.split(row, LENGTH, [EOS], SAMPLES)


def biased(tilt: float) -> dict[Prefix, float]:
    masses = {}
    for output in outputs():
        mass = 1.0
        for at, token in enumerate(output):
            p = row(output[:at])
            p = p * np.where(np.arange(V) == p.argmax(), 1 + tilt, 1)
            mass *= p[token] / p.sum()
        masses[output] = mass
    return masses


@pytest.mark.parametrize("tilt", [0.0, 0.4])
def test_probabilities_of_cells_are_those_of_all_outputs_in_them(cells: Cells, tilt: float) -> None:
    expected = np.zeros(len(cells.names))
    for output, mass in biased(tilt).items():
        expected[cells.of(output)] += mass
    assert cells.probability(tilt) == pytest.approx(expected, abs=1e-12)
    assert expected.sum() == pytest.approx(1)
    assert 10 < len(expected) <= chi_square.MOST_CELLS + 1
    assert (expected[:-1] >= chi_square.LEAST_EXPECTED / SAMPLES - 1e-12).all() or tilt


def drawn(cells: Cells, probability: Any, times: int, seed: int) -> Any:
    """counts[times, C]"""
    return np.random.default_rng(seed).multinomial(SAMPLES, probability, size=times)


def test_a_target_that_is_sampled_fails_as_often_as_the_level_says(cells: Cells) -> None:
    fair = cells.probability()
    ps = np.array([chi_square.compare(counts, fair).p for counts in drawn(cells, fair, 1500, seed=5)])
    assert kstest(ps, "uniform").pvalue > 1e-4
    assert (ps < 0.05).mean() == pytest.approx(0.05, abs=0.025)


@pytest.mark.parametrize("variation", [0.02, 0.03, 0.05])
def test_the_power_that_is_claimed_is_that_of_samples(cells: Cells, variation: float) -> None:
    level, tilt = 0.01, chi_square.tilt_for(cells, variation)
    fair, moved = cells.probability(), cells.probability(tilt)
    assert chi_square.distance(fair, moved) == pytest.approx(variation, rel=1e-6)
    rejected = [chi_square.compare(counts, fair).p < level for counts in drawn(cells, moved, 600, seed=7)]
    assert np.mean(rejected) == pytest.approx(chi_square.power(cells, tilt, SAMPLES, level), abs=0.08)


def test_what_cannot_be_is_found_by_a_few(cells: Cells) -> None:
    """All mass on two outputs: a third is impossible, and one of it is enough."""
    sure = chi_square.split(lambda prefix: np.array([0, 0.5, 0.5, 0, 0, 0, 0]), 1, [EOS], SAMPLES)
    counts = np.zeros(len(sure.names), dtype=int)
    for output, number in {(1,): SAMPLES // 2, (2,): SAMPLES // 2 - 1, (5,): 1}.items():
        counts[sure.of(output)] += number
    assert chi_square.compare(counts, sure.probability()).p < 1e-6


def test_a_certain_target_leaves_nothing_to_test() -> None:
    certain = chi_square.split(lambda prefix: np.eye(V)[3], LENGTH, [EOS], SAMPLES)
    assert chi_square.power(certain, 10.0, SAMPLES, 0.01) < 0.02
    counts = np.zeros(len(certain.names), dtype=int)
    counts[certain.of((3,) * LENGTH)] = SAMPLES
    assert chi_square.compare(counts, certain.probability()).p > 0.5


def test_bonferroni_is_the_smallest_times_their_number() -> None:
    assert chi_square.bonferroni([0.5, 0.01]) == pytest.approx(0.02)
    assert chi_square.bonferroni([0.9, 0.8]) == 1.0


def test_cells_are_named_by_how_they_begin(cells: Cells) -> None:
    names = [chi_square.named(cells, i, lambda ids: "".join(map(str, ids))) for i in range(len(cells.names))]
    assert len(set(names)) == len(names)
    assert names[-1] == "anything else"
    for output in itertools.islice(outputs(), 40):
        prefix, others = cells.names[cells.of(output)]
        assert output[: len(prefix)] == prefix
        assert others or len(prefix) <= len(output)
