"""Chooses a dial for a wanted loss on the calibration split, and says what it accepts on the test split.

The loss is the share of prompts that have an important mismatch which the rule accepts: their answers change. It is of
prompts with mismatches, so that it is never below that of all prompts.

Shapes: N mismatches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from specexp.errors import JudgeError
from specexp.judge.calibration import accepted_at, recall_at
from specexp.metrics.statistics import wilson
from specexp.rule_calibration.dials import Dial


@dataclass(frozen=True, slots=True)
class Scores:
    """A split's mismatches: scores[N] of one rule, important[N] of bools, and the prompt of each."""

    scores: np.ndarray
    important: np.ndarray
    prompts: Sequence[str]

    @property
    def lowest(self) -> np.ndarray:
        """For each prompt, the lowest score of an important mismatch, in ascending order; infinite without one."""
        result = dict.fromkeys(self.prompts, math.inf)
        for score, important, prompt in zip(self.scores, self.important, self.prompts, strict=True):
            if important:
                result[prompt] = min(result[prompt], float(score))
        return np.sort(np.array(list(result.values())))

    def loss(self, bound: float) -> float:
        """The share of prompts with an important mismatch that is accepted."""
        return float((self.lowest < bound).mean())


def bound_for(loss: float, split: Scores, dial: Dial) -> float:
    """Return the loosest bound with which at most `loss` of the split's prompts lose their answer.

    Every bound between the highest score that it accepts and the lowest that it must not accept gives the same result
    on this split; the middle of that gap leaves a margin on both sides. Raises JudgeError for an empty split.
    """
    if not len(split.scores):
        raise JudgeError("the calibration split has no mismatch; mine more prompts.")
    lowest = split.lowest
    allowed = math.floor(loss * len(lowest) + 1e-9)
    first_lost = float(lowest[allowed]) if allowed < len(lowest) else math.inf
    if math.isinf(first_lost):
        return dial.bound(dial.loosest)
    below = split.scores[split.scores < first_lost]
    if not len(below):
        return dial.bound(dial.lossless)
    return dial.bound(dial.value((float(below.max()) + first_lost) / 2))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A rule at its chosen dial: what it accepts on the test split, and its scores there."""

    name: str
    dial: Dial
    value: float
    calibration_loss: float
    test: Scores

    @property
    def bound(self) -> float:
        return self.dial.bound(self.value)

    def metrics(self) -> dict[str, float]:
        """The metrics of the test split, by the names of a judge's."""
        scores, important = self.test.scores, self.test.important
        loss, num = self.test.loss(self.bound), len(self.test.lowest)
        finite = np.nan_to_num(scores, posinf=1e9)
        return {
            "judge/recall": recall_at(self.bound, scores, important),
            "judge/accepted": accepted_at(self.bound, scores),
            "judge/accepted_unimportant": accepted_at(self.bound, scores[~important]),
            "judge/important_share": float(important.mean()),
            "judge/roc_auc": float(roc_auc_score(important, finite)),
            "judge/loss": loss,
            "judge/loss_high": wilson(loss * num, num)[1],
            "judge/calibration_loss": self.calibration_loss,
            "judge/threshold": self.value,
        }


def calibrated(name: str, dial: Dial, loss: float, calibration: Scores, test: Scores) -> Calibrated:
    """Choose the dial of a rule on one split, for another. Raises JudgeError if a split lacks a kind of mismatch."""
    if test.important.all() or not test.important.any():
        raise JudgeError("the test split holds only one kind of mismatch; mine more prompts.")
    bound = bound_for(loss, calibration, dial)
    return Calibrated(name, dial, dial.value(bound), calibration.loss(bound), test)


def row(each: Calibrated) -> dict[str, object]:
    """A row of the table."""
    metrics = each.metrics()
    return {
        "rule": each.name,
        "setting": each.dial.setting,
        "value": f"{each.value:.6g}",
        **{key.removeprefix("judge/"): f"{value:.4f}" for key, value in metrics.items() if key != "judge/threshold"},
    }
