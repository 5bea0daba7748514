"""Computes the threshold for a requested recall, and a judge's metrics on splits that its weights never saw."""

from __future__ import annotations

import math

import numpy as np
from sklearn import metrics

from specexp.errors import JudgeError

ALWAYS = 1.1  # a threshold above every probability
TINY = 1e-9  # keeps log-odds of 0 and 1 finite
Z = 1.959963984540054  # two-sided 95 %


def threshold_for(recall: float, p: np.ndarray, important: np.ndarray) -> float:
    """Return a threshold at which `recall` of the important mismatches or more, and as few others, have p >= threshold.

    p[N] are probabilities and important[N] bools, both of the calibration split. Any value between the lowest p that
    must be caught and the next lower p gives the same result on this split. The middle of that gap, in log-odds, leaves
    a margin on both sides for unseen data. Raises JudgeError if no mismatch is important.
    """
    result = np.sort(p[important].astype(np.float64))
    if not len(result):
        raise JudgeError("the calibration split has no important mismatch; mine more prompts.")
    missed = math.floor((1 - recall) * len(result) + 1e-9)
    if missed == len(result):
        return ALWAYS
    caught = result[missed]
    below = p[p < caught].astype(np.float64)
    odds = [math.log((x + TINY) / (1 - x + TINY)) for x in (below.max() if len(below) else 0.0, caught)]
    middle = 1 / (1 + math.exp(-sum(odds) / 2))
    return float(min(middle, caught))


def recall_at(threshold: float, p: np.ndarray, important: np.ndarray) -> float:
    """Return the share of the important mismatches that the judge rejects."""
    return float((p[important] >= threshold).mean())


def accepted_at(threshold: float, p: np.ndarray) -> float:
    """Return the share of all mismatches that the judge accepts."""
    return float((p < threshold).mean())


def report(threshold: float, p: np.ndarray, important: np.ndarray) -> dict[str, float]:
    """Return the metrics of a split. Raises JudgeError if a kind of mismatch is missing: the AUCs need both kinds."""
    if important.all() or not important.any():
        raise JudgeError("a split holds only one kind of mismatch; mine more prompts.")
    return {
        "roc_auc": float(metrics.roc_auc_score(important, p)),
        "pr_auc": float(metrics.average_precision_score(important, p)),
        "brier": float(metrics.brier_score_loss(important, p)),
        "recall": recall_at(threshold, p, important),
        "accepted": accepted_at(threshold, p),
        "accepted_unimportant": accepted_at(threshold, p[~important]),
        "important_share": float(important.mean()),
    }


def recall_margin(recall: float, num_calibration: int, num_test: int) -> float:
    """Return how far recall on one sample may be below that on another by chance: 95 %, with the error of both."""
    spread = recall * (1 - recall) * (1 / num_calibration + 1 / num_test)
    return Z * math.sqrt(spread)


def sweep(p: np.ndarray, important: np.ndarray, recalls: tuple[float, ...]) -> list[dict[str, float]]:
    """Return the threshold and the share of accepted mismatches for each requested recall on one split."""
    rows = []
    for recall in recalls:
        threshold = threshold_for(recall, p, important)
        rows.append({"recall": recall, "threshold": threshold, "accepted": accepted_at(threshold, p)})
    return rows
