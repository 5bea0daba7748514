"""Figures of an evaluation, as PNG files; matplotlib is loaded where the first one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specexp.evaluation.records import Record
from specexp.evaluation.trees import by_rank, reached


def draw_trees(path: Path, name: str, records: Sequence[Record]) -> None:
    """How deep the accepted paths of a setting's trees go, and which of the draft's choices they take."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    panels = (
        (left, 1, reached(records), "depth", "rounds that accept so deep"),
        (right, 0, by_rank(records), "rank by the draft (0 = its favourite)", "draws that met it"),
    )
    for axes, first, shares, across, up in panels:
        axes.bar(range(first, first + len(shares)), [100 * share for share in shares], color="#4c72b0")
        axes.set(xlabel=across, ylabel=f"{up}, %", ylim=(0, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(name)
    figure.savefig(path, dpi=120)
