"""Draws judge and rules on one curve: how many mismatches each accepts, and how many important ones it refuses then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specexp.judge.calibration import accepted_at, recall_at
from specexp.rule_calibration.choice import Calibrated
from specexp.storage.files import writing

NAME = "rules.png"


def points(each: Calibrated) -> tuple[np.ndarray, np.ndarray]:
    """accepted[M] and recall[M], shares at every bound that tells two mismatches of the test split apart."""
    finite = np.unique(each.test.scores[np.isfinite(each.test.scores)])
    bounds = [*finite, np.nextafter(finite[-1], np.inf)] if len(finite) else [0.0]
    accepted = np.array([accepted_at(bound, each.test.scores) for bound in bounds])
    return accepted, np.array([recall_at(bound, each.test.scores, each.test.important) for bound in bounds])


def draw(folder: Path, rules: Sequence[Calibrated]) -> Path:
    """Write the figure to `folder`."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, each in enumerate(rules):
        accepted, recall = points(each)
        axes.step(100 * accepted, 100 * recall, where="post", color=f"C{number}", label=each.name)
        at = each.metrics()
        axes.plot(100 * at["judge/accepted"], 100 * at["judge/recall"], "o", color=f"C{number}")
    axes.set(
        xlabel="mismatches accepted, %", ylabel="important mismatches refused (recall), %", xlim=(0, 100),
        ylim=(0, 102), title="Rules on the judge's test labels; the dot is the calibrated dial",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.9, edgecolor="none")
    path = folder / NAME
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path
