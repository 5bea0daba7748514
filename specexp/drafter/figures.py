"""Draws a training's curves and acceptance by position as PNG files; imports matplotlib only when drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specexp.drafter.acceptance import Acceptance
from specexp.storage.files import writing


def draw_curves(path: Path, curves: Mapping[int, Mapping[str, float]]) -> Path:
    """Draw the losses of `curves` (training step: metrics), one line for each drafted token."""
    names = sorted({name for metrics in curves.values() for name in metrics if name.startswith("train/loss_")})
    lines = {
        f"drafted token {name.removeprefix('train/loss_')}": (
            [step for step, metrics in curves.items() if name in metrics],
            [metrics[name] for metrics in curves.values() if name in metrics],
        )
        for name in names
    }
    return _draw(path, lines, "training step", "loss", "Training-time test")


def draw_acceptance(path: Path, by_name: Mapping[str, Acceptance], greedy: bool) -> Path:
    """Draw acceptance by position of each draft (name: acceptance), on greedy or on sampled outputs."""
    lines = {}
    for name, acceptance in by_name.items():
        shares = acceptance.greedy if greedy else acceptance.overlap
        lines[name] = (list(range(1, len(shares) + 1)), list(shares))
    kind = "greedy" if greedy else "temperature 1"
    return _draw(path, lines, "position of the drafted token", "accepted, if all before it are",
                 f"Acceptance by position, {kind}", "o-")  # fmt: skip


def _draw(
    path: Path, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, title: str,
    style: str = "-",
) -> Path:  # fmt: skip
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes: Any = figure.subplots()
    for name, (xs, ys) in lines.items():
        axes.plot(xs, ys, style, label=name)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(framealpha=0.9, edgecolor="none")
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path
