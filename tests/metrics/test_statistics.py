"""The statistics against published values, against scipy's, and against counting every possibility by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from specexp.metrics.statistics import (
    Timed,
    paired_difference,
    prompts_needed,
    rate,
    rate_ratio,
    sign_flip_p,
    swap_p,
    wilson,
)


def test_wilson() -> None:
    # Newcombe (1998), table I: 81 of 263, Wilson without continuity correction.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    for successes, trials in ((0, 20), (20, 20), (1, 3), (250, 500)):
        expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert wilson(successes, trials) == pytest.approx((expected.low, expected.high))
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize("gained,lost,same", [(0, 0, 5), (0, 6, 3), (3, 9, 100), (150, 110, 800)])
def test_sign_flips_of_single_answers_are_the_exact_mcnemar_test(gained: int, lost: int, same: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_flip_p([1] * gained + [-1] * lost + [0] * same) == pytest.approx(expected)


def test_repeats_of_a_prompt_do_not_make_a_difference_significant() -> None:
    """Six prompts lost in one repeat, and the same six in each of five: it is six prompts either way."""
    once, often = sign_flip_p([-1] * 6), sign_flip_p([-5] * 6)
    assert once == often == pytest.approx(2 / 2**6)
    mixed = [3, -1, 2, -2, 1, 1]
    sums = [abs(sum(s * d for s, d in zip(signs, mixed, strict=True))) for signs in product((1, -1), repeat=6)]
    assert sign_flip_p(mixed) == pytest.approx(sum(s >= sum(mixed) for s in sums) / len(sums))


def test_prompts_for_a_difference_follow_connors_formula() -> None:
    # d = 0.1, delta = 0.05: (1.959964 sqrt(.1) + 0.841621 sqrt(.1 - .0025))^2 / .0025 = 311.8.
    assert prompts_needed(0.1, 0.05) == 312
    # Nothing discordant was seen: as many as the fewest discordant prompts that make a point need.
    assert prompts_needed(0.0) == prompts_needed(0.01) == 783
    assert prompts_needed(0.005) == 783
    assert prompts_needed(0.2) == pytest.approx(100 * prompts_needed(0.2, 0.1), rel=0.04)


def test_that_many_prompts_do_have_that_power() -> None:
    """Simulated: at n prompts, 80 % of draws are significant (the exact test keeps a little less than its level)."""
    rng = np.random.default_rng(1)
    discordance, delta = 0.2, 0.1
    n = prompts_needed(discordance, delta)
    chances = [(discordance - delta) / 2, (discordance + delta) / 2, 1 - discordance]
    draws = rng.multinomial(n, chances, size=400)
    power = np.mean([sign_flip_p([1] * gained + [-1] * lost) < 0.05 for gained, lost, _ in draws.tolist()])
    assert 0.7 < power < 0.87


def timed(seconds: list[float], tokens: int = 10) -> Timed:
    return Timed([tokens] * len(seconds), [[s] for s in seconds])


def test_swapping_is_counted_out_where_that_is_possible() -> None:
    candidate, baseline = [1.0, 1.2, 0.8, 1.1], [1.3, 1.1, 1.2, 1.4]

    def far(swaps: tuple[int, ...]) -> float:
        pairs = [(b, a) if s else (a, b) for s, a, b in zip(swaps, candidate, baseline, strict=True)]
        return abs(math.log(sum(b for _, b in pairs) / sum(a for a, _ in pairs)))

    every = [far(swaps) for swaps in product((0, 1), repeat=4)]
    expected = sum(f >= every[0] - 1e-12 for f in every) / 16
    assert swap_p(timed(candidate), timed(baseline)) == pytest.approx(expected)
    assert swap_p(timed(baseline), timed(candidate)) == pytest.approx(expected), "the order of the two does not matter"


def test_a_gain_on_every_prompt_is_significant_from_six_prompts_on() -> None:
    for n in (2, 5, 6, 12):
        assert swap_p(timed([1.0] * n), timed([2.0] * n)) == pytest.approx(2 / 2**n)
    assert swap_p(timed([1.0] * 500), timed([2.0] * 500)) == 1 / 5000
    assert swap_p(timed([1.0] * 30), timed([1.0] * 30)) == 1.0


def test_swapping_finds_nothing_where_there_is_nothing() -> None:
    """Under the null hypothesis p is below 5 % in about 5 % of draws."""
    rng = np.random.default_rng(2)
    p_values = [swap_p(timed(list(rng.gamma(9, size=10))), timed(list(rng.gamma(9, size=10)))) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(150):
        baseline = rng.gamma(25, size=60)
        ratio = rate_ratio(timed(list(baseline / 2 * rng.uniform(0.8, 1.2, size=60))), timed(list(baseline)))
        held += ratio.low <= 2 <= ratio.high
    assert 0.88 < held / 150 < 0.99


def test_a_length_is_a_ratio_of_sums_whose_interval_holds_it() -> None:
    length = rate(Timed([40, 20, 30], [[10], [10], [6]]))
    assert length.value == pytest.approx(90 / 26)
    assert 2 <= length.low <= length.value <= length.high <= 5
    assert rate(Timed([40, 40], [[10], [10]])) == rate(Timed([4, 4], [[1], [1]]))


def test_of_repeats_the_median_counts() -> None:
    """One slow and one fast repeat of a prompt say nothing: 10 tokens in 4 seconds, 20 in 5."""
    result = rate(Timed([10, 20], [[4, 1, 90], [80, 5, 2]]))
    assert result.value == pytest.approx(30 / 9)
    ratio = rate_ratio(Timed([10], [[1.0, 2.0, 9.0]]), Timed([10], [[8.0, 4.0, 1.0]]))
    assert ratio.value == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Newcombe (1998), Stat. Med. 17, 2635-2650, table II, method 10.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((36, 14, 0, 0), (0.1528, 0.4167)),
        ((18, 14, 0, 18), (0.1441, 0.3963)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
        ((30, 0, 0, 24), (-0.0358, 0.0358)),
        # Fagerland, Lydersen, Laake (2014), Stat. Med. 33, 2850-2875: airway hyper-responsiveness.
        ((1, 1, 7, 12), (-0.507, -0.026)),
    ],
)
def test_paired_shares_differ_by_newcombes_published_intervals(
    table: tuple[int, int, int, int], expected: tuple[float, float]
) -> None:
    places = 3 if table == (1, 1, 7, 12) else 4
    assert [round(end, places) for end in paired_difference(*table)] == pytest.approx(expected)
    low, high = paired_difference(table[0], table[2], table[1], table[3])
    assert [round(-high, places), round(-low, places)] == pytest.approx(expected), "the other way round"


def test_an_interval_of_a_difference_is_never_a_point_and_holds_the_truth() -> None:
    for n in (1, 2, 5, 20, 500):
        for right in {0, 1, n}:
            low, high = paired_difference(right, 0, 0, n - right)
            assert -1 <= low < 0 < high <= 1
    rng = np.random.default_rng(5)
    held = 0
    for table in rng.multinomial(60, [0.8, 0.03, 0.08, 0.09], size=400).tolist():
        low, high = paired_difference(*table)
        held += low <= 0.03 - 0.08 <= high
    assert 0.93 < held / 400 < 0.99
