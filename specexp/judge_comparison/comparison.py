"""The comparison of trained judges: each beside the chosen one, with a paired test and its cost.

The judge is chosen on the validation split, and tested on the test split, which chose nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from specexp.judge import features
from specexp.judge.network import Network
from specexp.judge.trained_judge import TrainedJudge
from specexp.judge_comparison.paired_auc import PromptResampling, holm, interval, paired_p
from specexp.metrics.statistics import SIGNIFICANT

ROWS = 8  # drafted tokens that are judged in one call
CALLS = 50  # timed calls
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ComparedJudge:
    """A judge on the test split. `p_adjusted` is that of the paired test against the chosen one, None for itself."""

    name: str
    judge: TrainedJudge
    low: float  # of the 95 % interval of the ROC-AUC
    high: float
    p_adjusted: float | None
    microseconds: float  # of judging, for each drafted token
    extra_draft_forwards: int  # a round

    @property
    def roc_auc(self) -> float:
        return self.judge.metrics["judge/roc_auc"]

    @property
    def differs(self) -> bool:
        """True if the paired test tells it from the chosen one."""
        return self.p_adjusted is not None and self.p_adjusted < SIGNIFICANT

    def metrics(self) -> dict[str, float]:
        """Metrics of the comparison, beside the judge's own."""
        result = {
            "judge/roc_auc_low": self.low, "judge/roc_auc_high": self.high,
            "judge/microseconds_per_token": self.microseconds,
            "judge/extra_draft_forwards": float(self.extra_draft_forwards),
        }  # fmt: skip
        return {**result, **({} if self.p_adjusted is None else {"judge/p_against_chosen": self.p_adjusted})}

    def row(self) -> dict[str, object]:
        """A row of the table."""
        facts, metrics = self.judge.judge.facts, self.judge.metrics
        return {
            "judge": self.name, "features": facts.features, "kind": facts.kind,
            "validation_roc_auc": f"{self.judge.validation_auc:.4f}", "roc_auc": f"{self.roc_auc:.4f}",
            "roc_auc_low": f"{self.low:.4f}", "roc_auc_high": f"{self.high:.4f}",
            "p_adjusted": "" if self.p_adjusted is None else f"{self.p_adjusted:.4f}",
            "recall": f"{metrics['judge/recall']:.4f}", "accepted": f"{metrics['judge/accepted']:.4f}",
            "microseconds_per_token": f"{self.microseconds:.2f}",
            "extra_draft_forwards": self.extra_draft_forwards,
        }  # fmt: skip


def chosen_of(candidates: Mapping[str, TrainedJudge]) -> str:
    """The best by validation ROC-AUC; of equal ones, one without an extra draft forward, and the first of these."""
    return max(
        candidates, key=lambda name: (candidates[name].validation_auc, -_extra(candidates[name].judge.facts.features))
    )


def compared(
    candidates: Mapping[str, TrainedJudge],
    chosen: str,
    important: np.ndarray,
    prompts: Sequence[str],
    clock: Clock = time.perf_counter,
) -> list[ComparedJudge]:
    """Compare judges on the test split's mismatches, important[N] of bools; the best ROC-AUC comes first."""
    resampling = PromptResampling.of(important, prompts)
    values = {name: resampling.aucs(np.asarray(each.p)) for name, each in candidates.items()}
    others = [name for name in candidates if name != chosen]
    adjusted = dict(zip(others, holm([paired_p(values[name], values[chosen]) for name in others]), strict=True))
    result = [
        ComparedJudge(
            name, each, *interval(values[name]), adjusted.get(name), microseconds(each.judge.network, clock),
            _extra(each.judge.facts.features),
        )
        for name, each in candidates.items()
    ]  # fmt: skip
    return sorted(result, key=lambda each: -each.roc_auc)


def sentences(judges: Sequence[ComparedJudge], chosen: str, num_prompts: int) -> list[str]:
    """What the comparison says, one sentence each."""
    best = next(each for each in judges if each.name == chosen)
    worse = [each.name for each in judges if each.differs and each.roc_auc < best.roc_auc]
    better = [each.name for each in judges if each.differs and each.roc_auc > best.roc_auc]
    alike = [each for each in judges if each.name != chosen and not each.differs]
    result = [
        f"{chosen} has the highest ROC-AUC on the validation split, and on {num_prompts} test prompts"
        f" {best.roc_auc:.4f} (95 % interval {best.low:.4f} to {best.high:.4f})."
    ]
    if worse:
        result.append(f"Worse than it (paired bootstrap of prompts, Holm, p < {SIGNIFICANT:g}): {', '.join(worse)}.")
    if better:
        result.append(f"Better on the test split, by the same test: {', '.join(better)}.")
    if alike:
        names = ", ".join(f"{each.name} (p = {each.p_adjusted:.2g})" for each in alike)
        result.append(f"Not shown to differ from it: {names}.")
    if free := [each.name for each in alike if each.extra_draft_forwards < best.extra_draft_forwards]:
        result.append(f"{chosen} needs one more draft forward a round; without it: {', '.join(free)}.")
    return result


def microseconds(network: Network, clock: Clock = time.perf_counter) -> float:
    """The time of judging on this machine's processor, for each of `ROWS` drafted tokens of a call: the median."""
    x = np.random.default_rng(0).normal(size=(ROWS, network.num_features)).astype(np.float32)
    network(x)  # moves the arrays
    seconds = []
    for _ in range(CALLS):
        start = clock()
        network(x)
        seconds.append(clock() - start)
    return 1e6 * median(seconds) / ROWS


def _extra(mode: str) -> int:
    """Draft forwards a round that these features take and no other does: for the states at the last drafted token."""
    return int(features.mode(mode).needs.feed_last_token)
