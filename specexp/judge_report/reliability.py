"""How far a judge's probabilities can be taken at their word: calibration curve, Brier score, calibration error.

    ECE = sum over bins of (mismatches in the bin / all) |important share - mean probability|      (Naeini et al. 2015)

Bins are of equal width in probability. Intervals resample prompts.

Shapes: N mismatches, B draws, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specexp.judge_comparison.paired_auc import PromptResampling, interval
from specexp.metrics.statistics import wilson

BINS = 10
CHUNK = 100  # draws at a time


@dataclass(frozen=True, slots=True)
class Bin:
    """The mismatches with a probability from `low` up to `high`; the share's interval takes them as independent."""

    low: float
    high: float
    mismatches: int
    mean: float
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """The curve's bins that hold mismatches, and Brier score and ECE with their 95 % intervals."""

    bins: list[Bin]
    brier: float
    brier_interval: tuple[float, float]
    ece: float
    ece_interval: tuple[float, float]

    def metrics(self) -> dict[str, float]:
        return {
            "judge/brier": self.brier, "judge/brier_low": self.brier_interval[0],
            "judge/brier_high": self.brier_interval[1], "judge/ece": self.ece, "judge/ece_low": self.ece_interval[0],
            "judge/ece_high": self.ece_interval[1],
        }  # fmt: skip


def reliability(p: np.ndarray, resampling: PromptResampling) -> Reliability:
    """Compute all of it from probabilities p[N] of the resampling's mismatches."""
    p, important = p.astype(np.float64), resampling.important.astype(np.float64)
    place = bin_of(p)
    ones = np.ones((1, len(p)))
    briers, eces = [], []
    for first in range(0, len(resampling.counts), CHUNK):
        weights = resampling.counts[first : first + CHUNK, resampling.prompt].astype(float)
        weights = weights[weights.sum(axis=1) > 0]
        briers.append((weights * (p - important) ** 2).sum(axis=1) / weights.sum(axis=1))
        eces.append(_errors(weights, p, important, place))
    return Reliability(
        list(_bins(p, important, place)), float(((p - important) ** 2).mean()), interval(np.concatenate(briers)),
        float(_errors(ones, p, important, place)[0]), interval(np.concatenate(eces)),
    )  # fmt: skip


def bin_of(p: np.ndarray) -> np.ndarray:
    """The bin[N] of each probability; 1 is in the last one."""
    result: np.ndarray = np.minimum((p * BINS).astype(int), BINS - 1)
    return result


def _errors(weights: np.ndarray, p: np.ndarray, important: np.ndarray, place: np.ndarray) -> np.ndarray:
    """ECE[B] with weights[B, N]: in a bin, |sum of w (important - p)| / sum of all w."""
    inside = (place[:, None] == np.arange(BINS)[None, :]).astype(float)  # [N, K]
    gaps = np.abs((weights * (important - p)) @ inside)
    result: np.ndarray = gaps.sum(axis=1) / weights.sum(axis=1)
    return result


def _bins(p: np.ndarray, important: np.ndarray, place: np.ndarray) -> list[Bin]:
    result = []
    for number in range(BINS):
        inside = place == number
        if count := int(inside.sum()):
            share = float(important[inside].mean())
            low, high = wilson(float(important[inside].sum()), count)
            mean = float(p[inside].mean())
            result.append(Bin(number / BINS, (number + 1) / BINS, count, mean, share, low, high))
    return result
