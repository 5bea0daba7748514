"""The statistics an evaluation reports, from scipy; nothing here knows what is being compared."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share."""
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p of a paired comparison, from its discordant pairs."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
