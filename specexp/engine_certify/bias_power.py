"""How many samples find a bias of a wanted size, whatever it does; the bias that is planted; and how large one is.

Of all biases that move outputs by a total variation d, over cells of probability p, a chi-square test finds last those
with sum((a - p)^2 / p) = 4 d^2: by Cauchy and Schwarz no bias has less. Power is that of the noncentral chi-square
distribution with n times as much.

Shapes: C cells.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import beta, binom, chi2, ncx2, norm

from specexp.certify import chi_square
from specexp.certify.chi_square import Cells

Array = np.ndarray[Any, Any]
SURELY = 0.999  # power that counts as enough
MOST_SAMPLES = 1_000_000
_STEP = 1.02
_FLOOR = 1e-9  # used in place of probability 0


def power(num_cells: int, variation: float, num_samples: float, level: float) -> float:
    """The least probability with which so many samples tell any bias of this total variation from none."""
    degrees = num_cells - 1
    return float(ncx2.sf(chi2.isf(level, degrees), degrees, 4 * num_samples * variation**2))


def samples_needed(num_cells: int, variation: float, level: float) -> int:
    """The number of samples that surely finds any bias of this total variation."""
    number = 50.0
    while power(num_cells, variation, number, level) < SURELY and number < MOST_SAMPLES:
        number *= _STEP
    return math.ceil(number / 10) * 10


def least_variation(num_cells: int, num_samples: int, level: float) -> float:
    """The smallest total variation that so many samples surely find; 1 at most."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(num_cells, middle, num_samples, level) >= SURELY else (middle, high)
    return high


def samples_to_tell(fair: Array, other: Array, level: float) -> int:
    """The number of samples from `other`[C] that surely are not taken for samples from `fair`[C]."""
    low, high = 0, 10
    while power_to_tell(fair, other, high, level) < SURELY:
        if high >= MOST_SAMPLES:
            return MOST_SAMPLES
        low, high = high, min(high * 3 // 2, MOST_SAMPLES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_to_tell(fair, other, middle, level) >= SURELY else (middle, high)
    return high


def power_to_tell(fair: Array, other: Array, num_samples: int, level: float) -> float:
    """The probability with which `chi_square.compare` tells so many samples from `other`[C] from `fair`[C]: by a single
    output that cannot occur, by chi-square, or by too many in a rare leftover cell, whichever is likeliest."""
    kept = fair >= _FLOOR
    result = 1 - (1 - min(1.0, float(other[~kept].sum()))) ** num_samples
    fair, other = fair[kept], other[kept]
    rare = chi_square.is_rare(fair, num_samples)
    moved, share = chi_square.merged(other, fair, num_samples)
    if degrees := len(share) - 1:
        strength = num_samples * float(((moved - share) ** 2 / share).sum())
        result = max(result, float(ncx2.sf(chi2.isf(level / (1 + rare), degrees), degrees, strength)))
    if rare:
        most = binom.isf(level / 2, num_samples, float(fair[-1]))  # outputs in the cell that are not too many
        result = max(result, float(binom.sf(most, num_samples, min(1.0, float(other[-1])))))
    return result


def samples_to_prefer(true: Array, other: Array, level: float) -> int:
    """The number of samples from `true`[C] that surely are 1 / `level` times as likely by it as by `other`[C].

    The sum of their log-likelihood ratios is taken for normal.
    """
    p, q = np.maximum(true, _FLOOR), np.maximum(other, _FLOOR)
    ratio = np.log(p / q)
    mean = float((p * ratio).sum())
    variance = float((p * ratio**2).sum()) - mean**2
    certain = float(true[other < _FLOOR].sum())  # outputs that cannot occur by the other: a single one tells
    number = math.inf if certain <= 0 else math.log(1 - SURELY) / math.log1p(-min(certain, 1 - 1e-9))
    if mean > _FLOOR:
        spread = float(norm.isf(1 - SURELY)) * math.sqrt(max(variance, 0.0))
        root = (spread + math.sqrt(spread**2 - 4 * mean * math.log(level))) / (2 * mean)
        number = min(number, root**2)
    return MOST_SAMPLES if number > MOST_SAMPLES else math.ceil(number)


def planted(counts: Array, fair: Array, variation: float, rng: np.random.Generator) -> Array:
    """counts[C] after a bias of this total variation: each output is another one, of one cell, with some probability.

    That cell is the one of a probability near one half: of such biases the hardest to find.
    """
    cell = int(np.abs(fair - 0.5).argmin())
    share = min(1.0, variation / (1 - float(fair[cell])))
    moved = rng.binomial(counts, share)
    result = counts - moved
    result[cell] += moved.sum()
    return np.asarray(result)


def fits(counts: Array, probability: Array, level: float) -> bool:
    """True if the counts may come from these probabilities, of which some may be 0.

    Cells that expect few outputs count as one: for each of them the chi-square distribution does not hold.
    """
    if counts[probability < _FLOOR].any():
        return False
    rare = probability * counts.sum() < chi_square.LEAST_EXPECTED
    if rare.any():
        counts, probability = (np.append(each[~rare], each[rare].sum()) for each in (counts, probability))
    return chi_square.compare(counts, probability).p > level


def likelihood(counts: Array, probability: Array) -> float:
    """The log-likelihood of the counts, up to a constant."""
    return float((counts * np.log(np.maximum(probability, _FLOOR))).sum())


def at_least(cells: Cells, counts: Array, fair: Array, level: float) -> float:
    """A lower confidence bound of the total variation: of all beginnings of outputs, the one that is off by most.

    Clopper and Pearson's intervals, corrected for the number of beginnings.
    """
    total = int(counts.sum())
    starts = {name[:end] for name, _ in cells.names for end in range(1, len(name) + 1)}
    groups = [np.asarray([name[: len(start)] == start for name, _ in cells.names]) for start in starts]
    groups += [np.arange(len(cells.names)) == i for i in range(len(cells.names))]
    each = level / (2 * len(groups))
    result = 0.0
    for group in groups:
        came, expected = int(counts[group].sum()), float(fair[group].sum())
        low = float(beta.ppf(each, came, total - came + 1)) if came else 0.0
        high = float(beta.isf(each, came + 1, total - came)) if came < total else 1.0
        result = max(result, low - expected, expected - high)
    return result
