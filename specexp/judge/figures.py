"""Draws figures of judges on the test split as PNG files; imports matplotlib only when drawing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from specexp.judge.calibration import accepted_at, recall_at
from specexp.storage.files import writing

BINS = 10


def draw(folder: Path, judges: Mapping[str, tuple[float, np.ndarray]], important: np.ndarray) -> list[Path]:
    """Draw ROC, precision-recall, reliability and threshold sweep of judges (name: threshold, p[N]) on equal labels."""
    from matplotlib.figure import Figure

    paths = []
    panels: dict[str, Any] = {
        "roc": _roc, "precision_recall": _precision, "reliability": _reliability, "thresholds": _thresholds,
    }  # fmt: skip
    for name, panel in panels.items():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        for index, (judge, (threshold, p)) in enumerate(judges.items()):
            panel(axes, judge, threshold, p, important, f"C{index}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(framealpha=0.9, edgecolor="none")
        path = folder / f"{name}.png"
        with writing(path) as partial:
            figure.savefig(partial, dpi=120, format="png")
        paths.append(path)
    return paths


def _roc(axes, judge, threshold, p, important, color):  # type: ignore[no-untyped-def]
    wrong, caught, _ = roc_curve(important, p)
    axes.plot(wrong, caught, color=color, label=judge)
    axes.plot(accepted_complement(threshold, p, important), recall_at(threshold, p, important), "o", color=color)
    axes.set(
        xlabel="unimportant mismatches refused",
        ylabel="important mismatches refused (recall)",
        title="ROC; the dot is the calibrated threshold",
    )


def accepted_complement(threshold: float, p: np.ndarray, important: np.ndarray) -> float:
    """Return the share of the unimportant mismatches that the judge rejects nevertheless."""
    return 1 - accepted_at(threshold, p[~important])


def _precision(axes, judge, threshold, p, important, color):  # type: ignore[no-untyped-def]
    precision, recall, _ = precision_recall_curve(important, p)
    axes.plot(recall, precision, color=color, label=judge)
    axes.set(xlabel="recall of important mismatches", ylabel="precision", ylim=(0, 1.02), title="Precision and recall")


def _reliability(axes, judge, threshold, p, important, color):  # type: ignore[no-untyped-def]
    share, mean = calibration_curve(important, p, n_bins=BINS)
    axes.plot(mean, share, "o-", color=color, label=judge)
    axes.axline((0, 0), slope=1, color="0.7", linewidth=1)
    axes.set(xlabel="predicted probability", ylabel="important share", xlim=(0, 1), ylim=(0, 1), title="Reliability")


def _thresholds(axes, judge, threshold, p, important, color):  # type: ignore[no-untyped-def]
    grid = np.unique(np.concatenate([np.geomspace(1e-4, 1, 200), [threshold]]))
    axes.plot(grid, [recall_at(t, p, important) for t in grid], color=color, label=f"{judge}: recall")
    axes.plot(
        grid, [accepted_at(t, p) for t in grid], "--", color=color, label=f"{judge}: share of mismatches accepted"
    )
    axes.axvline(threshold, color=color, linewidth=0.8)
    axes.set(
        xlabel="threshold (lines: calibrated)",
        ylabel="share",
        xscale="log",
        ylim=(0, 1.02),
        title="Recall and acceptance by threshold",
    )
