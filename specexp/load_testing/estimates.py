"""Rates, latencies, goodput and speed-ups with 95 % bootstrap intervals, and from where speculation no longer pays.

A draw takes rounds with replacement, the same ones for all methods, and requests with replacement within each. Where a
round had K requests in flight on average (sum of their seconds / the round's seconds), a draw of its requests took the
sum of their seconds / K. All random numbers have a fixed seed.

Shapes: B draws, R rounds, N requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specexp.load_testing.levels import Level
from specexp.load_testing.loops import Sample, Segment
from specexp.metrics.statistics import PERCENTILES, RESAMPLES, Interval

Array = np.ndarray[Any, Any]
QUANTILES = {"median": 50, "p90": 90, "p99": 99}
DRAWS = RESAMPLES


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request must meet to be part of the goodput, in ms; 0 is no bound."""

    ttft: float = 0.0
    tpot: float = 0.0

    def met(self, sample: Sample) -> bool:
        """True if an answer meets both; one of a single token has no time per token."""
        in_time = not self.ttft or 1000 * sample.first <= self.ttft
        return in_time and (not self.tpot or sample.per_token is None or 1000 * sample.per_token <= self.tpot)

    def __bool__(self) -> bool:
        return bool(self.ttft or self.tpot)


@dataclass(frozen=True, slots=True)
class LevelEstimate:
    """A method at one level; arrays[B + 1], the first of each over the requests as they were, the others draws."""

    requests: int
    failures: int
    values: Mapping[str, Array]

    def interval(self, name: str) -> Interval:
        """Return one value with its interval; NaN where no request has it."""
        return interval(self.values[name])


def interval(values: Array) -> Interval:
    """Return values[0] with the percentile interval of values[1:]."""
    known = values[1:][~np.isnan(values[1:])]
    if not len(known):
        return Interval(float(values[0]), math.nan, math.nan)
    low, high = np.percentile(known, PERCENTILES)
    return Interval(float(values[0]), float(low), float(high))


def measured(rounds: Sequence[Segment], bounds: Bounds, draws: int = DRAWS) -> LevelEstimate:
    """Return the values of a method at a level: `tokens_per_second`, `requests_per_second`, `goodput` if there are
    bounds, `seconds_per_token` of whole requests, and quantiles of `ttft` and `tpot` in seconds."""
    picks = np.random.default_rng(0).integers(len(rounds), size=(draws, len(rounds)))  # [B, R], alike for all methods
    times = np.vstack([np.ones((1, len(rounds)), int), _counts(picks, len(rounds))])  # [B + 1, R]
    rng = np.random.default_rng(1)
    parts = [_round(each, bounds, draws, rng) for each in rounds]
    sums = {name: sum(times[:, i] * part[name] for i, part in enumerate(parts)) for name in _SUMS}
    with np.errstate(invalid="ignore", divide="ignore"):
        values: dict[str, Any] = {
            "tokens_per_second": sums["tokens"] / sums["window"],
            "requests_per_second": sums["requests"] / sums["window"],
            "seconds_per_token": sums["seconds"] / sums["tokens"],
        }
        if bounds:
            values["goodput"] = sums["good"] / sums["window"]
    samples = [sample for each in rounds for sample in each.samples]
    values |= _quantiles("ttft", rounds, lambda sample: sample.first, picks, rng)
    values |= _quantiles("tpot", rounds, lambda sample: sample.per_token, picks, rng)
    return LevelEstimate(len(samples), sum(len(each.failures) for each in rounds), values)


_SUMS = ("tokens", "requests", "good", "seconds", "window")


def _round(segment: Segment, bounds: Bounds, draws: int, rng: np.random.Generator) -> dict[str, Array]:
    """Return sums over a round's requests for each draw, [B + 1]."""
    num = len(segment.samples)
    rows = np.array(
        [[each.tokens, 1, bounds.met(each), each.seconds] for each in segment.samples], dtype=float
    ).reshape(num, 4)  # fmt: skip
    whole = rows.sum(axis=0)
    if num:
        weights = rng.multinomial(num, np.full(num, 1 / num), size=draws)  # [B, N]
        sums = np.vstack([whole, weights @ rows])
        window = segment.seconds * sums[:, 3] / whole[3]
    else:
        sums, window = np.zeros((draws + 1, 4)), np.full(draws + 1, segment.seconds)
    return {**dict(zip(_SUMS, sums.T, strict=False)), "window": window}


def _counts(picks: Array, num: int) -> Array:
    """Return how often each round is drawn, [B, R]."""
    return np.stack([(picks == i).sum(axis=1) for i in range(num)], axis=1)


def _quantiles(
    name: str, rounds: Sequence[Segment], value: Callable[[Sample], float | None], picks: Array,
    rng: np.random.Generator,
) -> dict[str, Array]:  # fmt: skip
    """Return the quantiles of one value over all requests, [B + 1] each."""
    known = [[x for sample in each.samples if (x := value(sample)) is not None] for each in rounds]
    percents = list(QUANTILES.values())
    result = np.full((len(picks) + 1, len(percents)), np.nan)
    if pooled := [x for each in known for x in each]:
        result[0] = np.percentile(pooled, percents)
        arrays = [np.asarray(each) for each in known]
        for place, chosen in enumerate(picks, 1):
            parts = [arrays[i][rng.integers(len(arrays[i]), size=len(arrays[i]))] for i in chosen if len(arrays[i])]
            if parts:
                result[place] = np.percentile(np.concatenate(parts), percents)
    return {f"{name}_{quantile}": result[:, i] for i, quantile in enumerate(QUANTILES)}


def speedup(level: Level, candidate: LevelEstimate, plain: LevelEstimate) -> Array:
    """Return the speed-up over plain decoding, [B + 1]: of tokens per second in a closed loop; in an open one, whose
    arrivals decide the tokens per second, plain decoding's seconds per token of whole requests / the method's."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if level.kind == "concurrency":
            ratio = candidate.values["tokens_per_second"] / plain.values["tokens_per_second"]
        else:
            ratio = plain.values["seconds_per_token"] / candidate.values["seconds_per_token"]
    return np.asarray(ratio)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The lowest level from which on no level has a speed-up above 1; infinite if the highest level has one."""

    value: float
    low: float
    high: float
    levels: tuple[float, ...]

    @property
    def is_determined(self) -> bool:
        """False if the interval holds every possible answer."""
        return not (self.low == self.levels[0] and math.isinf(self.high))

    def words(self) -> str:
        """Return it as text, such as `8 (95 % interval 4 to none up to 64)`."""
        low, value, high = (self._level(each) for each in (self.low, self.value, self.high))
        if not self.is_determined:
            return f"not determined (95 % interval {low} to {high})"
        return value if low == high else f"{value} (95 % interval {low} to {high})"

    def _level(self, value: float) -> str:
        return f"none up to {self.levels[-1]:g}" if math.isinf(value) else f"{value:g}"


def break_even(levels: Sequence[float], speedups: Sequence[Array]) -> BreakEven:
    """Return from where speculation no longer pays, by the speed-ups [B + 1] of ascending levels.

    The interval is that of the draws' own answers, in whole levels.
    """
    ratios = np.stack(list(speedups))  # [levels, B + 1]
    pays = ~(ratios <= 1)
    last = np.where(pays.any(axis=0), len(levels) - np.argmax(pays[::-1], axis=0), 0)  # levels up to the last that pays
    answers = np.array([*levels, math.inf])[last]
    ordered = np.sort(answers[1:])
    low, high = (ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] for share in PERCENTILES)
    return BreakEven(float(answers[0]), float(low), float(high), tuple(levels))
