"""Statistics of load from hand-made records."""

from __future__ import annotations

import math

import numpy as np
import pytest

from specexp.load_testing.capacity import LONG, Capacity, binds, capacity_of
from specexp.load_testing.estimates import Bounds, break_even, interval, measured, speedup
from specexp.load_testing.levels import Level
from specexp.load_testing.loops import Sample, Segment

FAST, SLOW = Sample(0, 10, 10, 0.1, 0.02, 0.3), Sample(1, 30, 30, 0.4, 0.05, 1.7)
ONE = Sample(2, 1, 1, 0.2, None, 0.2)
CLOSED, OPEN = Level("concurrency", 2), Level("request_rate", 2.0)


def segment(*samples: Sample, seconds: float = 2.0, failures: int = 0) -> Segment:
    return Segment(list(samples), ["no"] * failures, seconds)


def test_rates_are_sums_over_rounds() -> None:
    result = measured([segment(FAST, SLOW), segment(FAST, ONE, seconds=1.0, failures=2)], Bounds())
    assert (result.requests, result.failures) == (4, 2)
    assert result.interval("tokens_per_second").value == pytest.approx(51 / 3)
    assert result.interval("requests_per_second").value == pytest.approx(4 / 3)
    assert result.interval("seconds_per_token").value == pytest.approx((0.3 + 1.7 + 0.3 + 0.2) / 51)
    assert result.interval("ttft_median").value == pytest.approx(0.15)
    assert result.interval("tpot_median").value == pytest.approx(0.02), "an answer of one token has none"
    assert "goodput" not in result.values
    speed = result.interval("tokens_per_second")
    assert speed.low < speed.value < speed.high
    again = measured([segment(FAST, SLOW), segment(FAST, ONE, seconds=1.0, failures=2)], Bounds())
    assert again.interval("ttft_p99") == result.interval("ttft_p99")


@pytest.mark.parametrize(
    "bounds, good",
    [
        (Bounds(ttft=150), 1), (Bounds(ttft=200), 2), (Bounds(tpot=30), 2), (Bounds(tpot=50), 3),
        (Bounds(ttft=150, tpot=10), 0), (Bounds(ttft=400, tpot=50), 3),
    ],
    ids=str,
)  # fmt: skip
def test_goodput_counts_requests_that_meet_both_bounds(bounds: Bounds, good: int) -> None:
    """Failures are no part of it."""
    result = measured([segment(FAST, SLOW, ONE, seconds=4.0, failures=5)], bounds)
    assert result.interval("goodput").value == pytest.approx(good / 4.0)


def test_a_draw_of_longer_requests_takes_longer() -> None:
    """Equal requests have one rate however they are drawn; the interval is then a point."""
    result = measured([segment(FAST, FAST, FAST), segment(FAST, FAST, FAST)], Bounds())
    speed = result.interval("tokens_per_second")
    assert (speed.low, speed.high) == (pytest.approx(speed.value), pytest.approx(speed.value))
    # Twice the seconds for twice the tokens: every draw has the same rate, too.
    double = Sample(0, 20, 20, 0.2, 0.02, 0.6)
    speed = measured([segment(FAST, FAST, double, seconds=1.2)], Bounds()).interval("tokens_per_second")
    assert (speed.low, speed.high) == (pytest.approx(speed.value), pytest.approx(speed.value))


def test_a_round_without_answers_counts_its_time() -> None:
    result = measured([segment(FAST), segment(seconds=8.0, failures=3)], Bounds())
    assert result.interval("tokens_per_second").value == pytest.approx(1.0)


def test_speedup_is_of_throughput_in_a_closed_loop_and_of_latency_in_an_open_one() -> None:
    plain, spec = measured([segment(SLOW)], Bounds()), measured([segment(SLOW, seconds=1.0)], Bounds())
    assert interval(speedup(CLOSED, spec, plain)).value == pytest.approx(2.0)
    assert interval(speedup(OPEN, spec, plain)).value == pytest.approx(1.0)
    fast = measured([segment(Sample(1, 30, 30, 0.1, 0.01, 0.85))], Bounds())
    assert interval(speedup(OPEN, fast, plain)).value == pytest.approx(2.0)
    rounds = [segment(FAST, SLOW), segment(FAST, FAST, seconds=0.5)]
    itself = interval(speedup(CLOSED, measured(rounds, Bounds()), measured(rounds, Bounds())))
    assert (itself.low, itself.value, itself.high) == (1.0, 1.0, 1.0)


def ratios(point: float, low: float, high: float, num: int = 1000) -> np.ndarray:
    return np.concatenate([[point], np.linspace(low, high, num)])


def test_break_even_is_the_lowest_level_from_which_nothing_pays() -> None:
    clear = break_even([1, 2, 4], [ratios(1.5, 1.4, 1.6), ratios(1.2, 1.1, 1.3), ratios(0.8, 0.7, 0.9)])
    assert (clear.value, clear.low, clear.high, clear.words()) == (4, 4, 4, "4")
    # A level in between at which it does not pay is not the end where a higher one pays.
    dip = break_even([1, 2, 4], [ratios(1.5, 1.4, 1.6), ratios(0.9, 0.8, 0.95), ratios(1.2, 1.1, 1.3)])
    assert (dip.value, dip.words()) == (math.inf, "none up to 4")
    never = break_even([1, 2], [ratios(0.9, 0.8, 0.95), ratios(1.0, 0.9, 1.0)])
    assert (never.value, never.words()) == (1, "1")


def test_break_even_has_the_interval_of_its_draws_or_is_not_determined() -> None:
    near = break_even([1, 2, 4], [ratios(1.5, 1.4, 1.6), ratios(1.01, 0.8, 1.3), ratios(0.8, 0.7, 0.9)])
    assert (near.low, near.value, near.high) == (2, 4, 4)
    assert near.words() == "4 (95 % interval 2 to 4)"
    open_end = break_even([1, 2, 4], [ratios(1.5, 1.4, 1.6), ratios(1.2, 1.1, 1.3), ratios(0.99, 0.8, 1.3)])
    assert open_end.words() == "4 (95 % interval 4 to none up to 4)"
    unknown = break_even([1, 2], [ratios(1.0, 0.5, 1.5), ratios(0.9, 0.5, 1.5)])
    assert not unknown.is_determined
    assert unknown.words() == "not determined (95 % interval 1 to none up to 2)"


def test_the_client_binds_near_its_capacity_or_where_its_loop_is_late() -> None:
    capacity = capacity_of(4, short=0.002, long=0.002 + (LONG - 1) * 0.0001)
    assert capacity == Capacity(4, pytest.approx(0.0019), pytest.approx(0.0001))
    assert capacity.requests_per_second == pytest.approx(500)
    assert capacity.tokens_per_second == pytest.approx(LONG / (0.0019 + LONG * 0.0001))
    half = [Segment([FAST] * 100, ["no"] * 10, 1.0)]
    share = capacity.share(half)
    assert share == pytest.approx(110 * 0.0019 + 1000 * 0.0001)
    assert binds(share, 0.0) == ""
    assert binds(0.51, 0.0) == "it used 51% of its capacity"
    assert binds(0.1, 0.05) == "its event loop was 50 ms late"
    assert binds(0.9, 0.05) == "it used 90% of its capacity and its event loop was 50 ms late"
