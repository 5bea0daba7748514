"""ROC-AUC of judges on the same mismatches, with intervals and paired tests that resample prompts.

The mismatches of a prompt depend on each other, so prompts are drawn with replacement, the same ones for all judges. A
draw that holds one kind of mismatch only has no AUC and is left out.

Shapes: N mismatches, P prompts, B draws, U different scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specexp.metrics.statistics import PERCENTILES, RESAMPLES

CHUNK = 100  # draws at a time


def draws(num_prompts: int, num: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """counts[B, P]: how often each prompt is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num)


@dataclass(frozen=True, slots=True)
class PromptResampling:
    """important[N] of bools, the number of each mismatch's prompt[N], and counts[B, P] of the draws."""

    important: np.ndarray
    prompt: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, important: np.ndarray, prompts: Sequence[str], num: int = RESAMPLES) -> PromptResampling:
        """With `num` draws of a fixed seed."""
        names, prompt = np.unique(np.asarray(prompts), return_inverse=True)
        return cls(important, prompt, draws(len(names), num))

    def aucs(self, p: np.ndarray) -> np.ndarray:
        """AUC[B] of scores p[N] on each draw: the share of pairs of an important and an unimportant mismatch in which
        the important one has the higher score; equal ones count half. NaN without a pair."""
        order = np.argsort(p, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(p[order]) != 0])
        result = []
        for first in range(0, len(self.counts), CHUNK):
            weights = self.counts[first : first + CHUNK, self.prompt[order]].astype(float)
            marked = self.important[order]
            caught = np.add.reduceat(weights * marked, starts, axis=1)  # [B, U]
            others = np.add.reduceat(weights * ~marked, starts, axis=1)
            below = np.cumsum(others, axis=1) - others
            pairs = caught.sum(axis=1) * others.sum(axis=1)
            won = (caught * (below + others / 2)).sum(axis=1)
            result.append(np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
        return np.concatenate(result)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of values[B]; NaN if none is a number."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, PERCENTILES)
    return float(low), float(high)


def paired_p(first: np.ndarray, second: np.ndarray) -> float:
    """The two-sided p for equal values, from the values[B] of both on the same draws: twice the smaller share of
    draws in which one is not above the other, where the observed sample counts as a draw of either kind."""
    difference = first - second
    known = difference[~np.isnan(difference)]
    least = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (least + 1) / (len(known) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for several tests (Holm 1979, Scand. J. Stat. 6, 65-70), in the order given."""
    result, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        result[place] = highest
    return result
