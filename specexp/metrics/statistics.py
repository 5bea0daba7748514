"""The statistics that are reported; independent of what is compared.

The unit is the prompt: all turns and repeats of a prompt are resampled, swapped and counted together, since repeats of
a prompt say little more about other prompts. All random numbers have a fixed seed.

Shapes: P prompts, R repeats, B bootstrap samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SIGNIFICANT = 0.05
POWER = 0.8
RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
ALL_SWAPS = 12  # up to this many prompts, all possible swaps are evaluated
SWAPS = 4999  # the number of random swaps for more prompts
AT_ONCE = 500_000  # draws in memory at a time: a matrix of all would be large
FEW_CHANGES = 5_000  # differences up to which a sign test adds them one by one


def wilson(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval for a share (Wilson 1927).

    With several repeats of a prompt, `trials` is the number of prompts and `successes` the sum of their mean shares,
    not an integer: the interval is then too wide rather than too narrow.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    middle = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = ((middle + sign * reach) / (1 + z * z / trials) for sign in (-1, 1))
    return (low if successes > 0 else 0.0), (high if successes < trials else 1.0)


def paired_difference(both: float, first: float, second: float, neither: float) -> tuple[float, float]:
    """Return the 95 % interval of the difference p1 - p2 of two shares on the same prompts.

    The counts are of prompts on which both are right, the first alone, the second alone, neither. Newcombe 1998 (Stat.
    Med. 17, 2635-2650), method 10, from Wilson's intervals of both shares and their correlation. The interval has a
    width even if no prompt is discordant. With several repeats of a prompt, the counts are sums of mean shares, not
    integers; as in `wilson`, the interval is then too wide rather than too narrow.
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (low1, high1), (low2, high2) = (_wilson(p, n) for p in (p1, p2))
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    together = both * neither - first * second
    if together > 0:
        together = max(together - n / 2, 0.0)
    phi = together / math.sqrt(margins) if margins > 0 else 0.0
    below = (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2
    above = (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2
    return p1 - p2 - math.sqrt(below), p1 - p2 + math.sqrt(above)


def _wilson(share: float, trials: float) -> tuple[float, float]:
    low, high = wilson(share * trials, trials)
    return min(low, share), max(high, share)  # keep rounding from excluding the share itself


def sign_flip_p(differences: Sequence[int]) -> float:
    """Return the exact two-sided p of a paired comparison, from one integer difference per prompt.

    Under the null hypothesis, each difference could have had the other sign: p is the share of all sign patterns whose
    sum is at least as far from 0. With differences of -1, 0 and 1 this is the exact McNemar test. With repeats, the
    differences of a prompt are summed first; McNemar's test would count the prompt several times.
    """
    sizes = [abs(d) for d in differences if d]
    whole = sum(sizes)
    if len(sizes) > FEW_CHANGES:
        return _sign_flip_p_of_many(Counter(sizes), abs(sum(differences)))
    chance = np.zeros(2 * whole + 1)  # probability of each sum, from -whole on
    chance[whole] = 1.0
    for size in sizes:
        chance = 0.5 * (np.roll(chance, size) + np.roll(chance, -size))  # no sum wraps around
    far = np.abs(np.arange(-whole, whole + 1)) >= abs(sum(differences))
    return min(1.0, float(chance[far].sum()))


def _sign_flip_p_of_many(sizes: Mapping[int, int], seen: int) -> float:
    """Return the p of `sign_flip_p`: sums of differences of one size are binomial, those of several are convolved."""
    from scipy.signal import fftconvolve  # slow to import: not for commands that do not come here
    from scipy.stats import binom

    chance, whole = np.ones(1), sum(size * number for size, number in sizes.items())
    for size, number in sizes.items():
        spread = np.zeros(2 * size * number + 1)
        spread[:: 2 * size] = binom.pmf(np.arange(number + 1), number, 0.5)
        chance = fftconvolve(chance, spread)
    far = np.abs(np.arange(-whole, whole + 1)) >= seen
    return min(1.0, max(0.0, float(chance[far].sum())))


def prompts_needed(discordance: float, difference: float = 0.01) -> int:
    """Return the prompts at which a paired test at the 5 % level detects this difference of two shares with 80 % power.

    `discordance` is the share of prompts on which the two differ; with repeats, the mean squared mean difference.
    n = (z_0.975 sqrt(d) + z_0.8 sqrt(d - delta^2))^2 / delta^2, Connor 1987 (Biometrics 43, 207-211), after Miettinen
    1968. A smaller share of discordant prompts than `difference` cannot give that difference, so d is at least
    `difference`: the fewest prompts that any pair of methods needs. Without discordant prompts, it is a lower bound.
    """
    d = max(discordance, difference)
    level, power = (NormalDist().inv_cdf(share) for share in (1 - SIGNIFICANT / 2, POWER))
    root = level * math.sqrt(d) + power * math.sqrt(d - difference**2)
    return math.ceil((root / difference) ** 2)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Timed:
    """Tokens emitted for each of P prompts, and the seconds of each of R repeats: tokens[P], seconds[P][R]."""

    tokens: Sequence[float] | Array
    seconds: Sequence[Sequence[float]] | Array


def rate(timed: Timed) -> Interval:
    """Return tokens per second: the sum over prompts / the sum of each prompt's median seconds over repeats."""
    return _interval(lambda prompts, repeats: _rates(timed, prompts, repeats), timed)


def rate_ratio(candidate: Timed, baseline: Timed) -> Interval:
    """Return the `rate` of `candidate` / `baseline`, for the same prompts and repeats: both are resampled together."""
    return _interval(
        lambda prompts, repeats: _rates(candidate, prompts, repeats) / _rates(baseline, prompts, repeats), candidate
    )


def swap_p(candidate: Timed, baseline: Timed) -> float:
    """Return the two-sided p for `rate_ratio` = 1 with R = 1: a permutation test that swaps the two on whole prompts.

    Under the null hypothesis, the two could be swapped on any prompt. p is the share of swaps whose ratio is at least
    as far from 1: of all swaps for up to 12 prompts, else of 4,999 random ones and the observed one. p cannot be below
    2 / 2^P, so with fewer than 6 prompts nothing is significant.
    """
    own, other = (
        np.column_stack([x.tokens, np.asarray(x.seconds)[:, 0]]).astype(float, copy=False)
        for x in (candidate, baseline)
    )
    num_prompts, totals = len(own), (own.sum(axis=0), other.sum(axis=0))
    moved = np.subtract(other, own, out=other)  # of many prompts each takes megabytes
    del own
    seen = _far(np.zeros((1, num_prompts)), moved, totals)[0]
    enough = seen * (1 - 1e-9)  # the mirrored swap rounds differently
    if num_prompts <= ALL_SWAPS:
        swaps = np.array(list(product((0.0, 1.0), repeat=num_prompts)))
        return float(np.mean(_far(swaps, moved, totals) >= enough))
    rng = np.random.default_rng(0)
    hits = 0
    for rows in rows_at_once(SWAPS, num_prompts):
        swaps = rng.integers(2, size=(rows, num_prompts)).astype(float)
        hits += int(np.sum(_far(swaps, moved, totals) >= enough))
    return (1 + hits) / (1 + SWAPS)


def _far(swaps: Array, differences: Array, totals: tuple[Array, Array]) -> Array:
    """Return |log ratio| of rates for each row of swaps[B, P]. `totals` are the candidate's and the baseline's tokens
    and seconds, and differences[P, 2] what a swap of each prompt adds to the candidate's."""
    moved = swaps @ differences
    a, b = totals[0] + moved, totals[1] - moved
    result: Array = np.abs(np.log(a[:, 0] / a[:, 1]) - np.log(b[:, 0] / b[:, 1]))
    return result


def _rates(timed: Timed, prompts: Array, repeats: Array) -> Array:
    """Return one rate for each row of prompts[B, P] and repeats[B, R]."""
    every_PR = np.asarray(timed.seconds)
    if every_PR.shape[1] == 1:
        seconds = every_PR[:, 0][prompts].sum(axis=1)
    else:
        middle_PB = np.median(every_PR[:, repeats], axis=-1)
        seconds = np.take_along_axis(middle_PB.T, prompts, axis=1).sum(axis=1)
    result: Array = np.asarray(timed.tokens)[prompts].sum(axis=1) / seconds
    return result


def _interval(rates: Callable[[Array, Array], Array], like: Timed) -> Interval:
    """Return the percentile bootstrap interval over prompts and repeats; equal timings always give equal intervals."""
    num_prompts, num_repeats = np.asarray(like.seconds).shape
    whole = rates(np.arange(num_prompts)[None], np.arange(num_repeats)[None])
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    sizes = list(rows_at_once(RESAMPLES, num_prompts))
    for rows in sizes:  # the repeats are drawn after all prompts
        if num_repeats > 1:
            rng.integers(num_prompts, size=(rows, num_prompts))
    drawn = [
        rates(
            again.integers(num_prompts, size=(rows, num_prompts)), rng.integers(num_repeats, size=(rows, num_repeats))
        )
        for rows in sizes
    ]
    low, high = np.percentile(np.concatenate(drawn), PERCENTILES)
    return Interval(float(whole[0]), float(low), float(high))


def rows_at_once(number: int, width: int) -> Iterator[int]:
    """Divide `number` rows of `width` draws into parts that fit in memory. A generator draws the same in parts."""
    most = max(1, AT_ONCE // width)
    for start in range(0, number, most):
        yield min(most, number - start)
