"""The statistics that are reported, from scipy and numpy; nothing here knows what is being compared.

Shapes: P prompts, R repeats, B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

Array = np.ndarray[Any, Any]


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share."""
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p of a paired comparison, from its discordant pairs."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; the same values always give the same interval."""
    if len(set(values)) == 1:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (np.asarray(values, dtype=float),), np.mean, confidence_level=confidence, n_resamples=resamples,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Timed:
    """Tokens emitted for each of P prompts, and the seconds of each of R repeats: tokens[P], seconds[P][R]."""

    tokens: Sequence[float]
    seconds: Sequence[Sequence[float]]


def rate(timed: Timed) -> Interval:
    """Tokens a second: the sum over prompts / the sum of each prompt's median over repeats."""
    return _interval(lambda prompts, repeats: _rates(timed, prompts, repeats), timed)


def rate_ratio(ours: Timed, theirs: Timed) -> Interval:
    """`rate` of the one / of the other, on the same prompts in the same repeats: both are drawn together."""
    return _interval(lambda prompts, repeats: _rates(ours, prompts, repeats) / _rates(theirs, prompts, repeats), ours)


def _rates(timed: Timed, prompts: Array, repeats: Array) -> Array:
    """One rate for each row of prompts[B, P] and repeats[B, R]."""
    middle_PB = np.median(np.asarray(timed.seconds)[:, repeats], axis=-1)
    seconds = np.take_along_axis(middle_PB.T, prompts, axis=1).sum(axis=1)
    found: Array = np.asarray(timed.tokens)[prompts].sum(axis=1) / seconds
    return found


def _interval(rates: Callable[[Array, Array], Array], like: Timed, resamples: int = 2000) -> Interval:
    """Percentile bootstrap over prompts and repeats; the same timings always give the same interval."""
    num_prompts, num_repeats = np.asarray(like.seconds).shape
    whole = rates(np.arange(num_prompts)[None], np.arange(num_repeats)[None])
    rng = np.random.default_rng(0)
    drawn = rates(
        rng.integers(num_prompts, size=(resamples, num_prompts)),
        rng.integers(num_repeats, size=(resamples, num_repeats)),
    )
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(whole[0]), float(low), float(high))
