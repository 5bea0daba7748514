"""Recall margins and thresholds against counting, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from specexp.judge import calibration


def test_the_margin_has_the_error_of_both_samples() -> None:
    """Two independent shares differ with variance r (1 - r) (1 / n + 1 / m)."""
    z = norm.ppf(0.975)
    expected = z * math.sqrt(0.9 * 0.1 * (1 / 50 + 1 / 200))
    assert calibration.recall_margin(0.9, 50, 200) == pytest.approx(expected)
    assert calibration.recall_margin(0.9, 200, 50) == pytest.approx(expected)
    assert calibration.recall_margin(1.0, 5, 5) == 0.0


def test_a_test_recall_falls_below_the_margin_as_seldom_as_it_says() -> None:
    """Simulated: calibrated on 60 important mismatches, tested on 40 others; about 2.5 % fall below."""
    rng = np.random.default_rng(0)
    margin = calibration.recall_margin(0.8, 60, 40)
    below = 0
    for _ in range(1500):
        threshold = calibration.threshold_for(0.8, rng.uniform(size=60), np.ones(60, dtype=bool))
        below += calibration.recall_at(threshold, rng.uniform(size=40), np.ones(40, dtype=bool)) < 0.8 - margin
    assert 0.005 < below / 1500 < 0.05


def test_what_is_exactly_at_the_threshold_is_caught() -> None:
    p, important = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])
    assert calibration.recall_at(0.5, p, important) == 1.0
    assert calibration.accepted_at(0.5, p) == 0.25


def test_a_report_tells_both_kinds_of_mismatch_apart() -> None:
    p, important = np.array([0.1, 0.4, 0.6, 0.9, 0.2]), np.array([False, True, False, True, False])
    report = calibration.report(0.5, p, important)
    assert report["recall"] == 0.5
    assert report["accepted"] == pytest.approx(3 / 5)
    assert report["accepted_unimportant"] == pytest.approx(2 / 3)
    assert report["important_share"] == pytest.approx(2 / 5)
    assert report["roc_auc"] == pytest.approx(5 / 6)
    assert report["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01 + 0.04) / 5)
