"""The layout of the comparison's figures: 900 pixels wide, settings numbered, with a legend or named rows.

Margins are set in inches, by the number of settings; this module does not depend on what a figure shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from specexp.evaluation.report.comparison import Entry
from specexp.evaluation.report.label_placement import Point, places

WIDTH = 7.5  # inches, at 120 dots per inch
BESIDE = 2.15  # inches of the width that the names take
COLORS = {
    "baseline": "#444444", "draft_only": "#999999", "speculative": "#0072b2", "lookup": "#56b4e9", "suffix": "#5b3a8c",
    "chained": "#8c564b",
    "autojudge": "#d55e00", "topk": "#e69f00", "specexec": "#009e73", "typical": "#b07aa1", "entropy": "#7f7f00",
    "fly": "#c2185b", "fuzzy": "#17becf",
    "autojudge_tree": "#8a3c00", "topk_tree": "#a36f00", "typical_tree": "#7b5273", "entropy_tree": "#5c5c1f",
}  # fmt: skip
OTHER = "#cc79a7"
LIGHTEST = 0.6  # share of the way from a method's color to white


def plot_with_key(
    shown: Sequence[Entry], height: float, below: float = 0.0, filled: bool = False
) -> tuple[Any, list[Any]]:
    """Make a plot with the numbered names next to it; if `below` > 0, with a second plot of that height under it."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window
    from matplotlib.lines import Line2D

    height = max(height, 0.19 * len(shown) + 0.5)
    figure = Figure(figsize=(WIDTH, height))
    left, wide = 0.62 / WIDTH, (WIDTH - BESIDE - 0.72) / WIDTH
    bottom = below + 0.35 if below else 0.5
    axes = [figure.add_axes((left, bottom / height, wide, (height - bottom - 0.15) / height))]
    if below:
        axes.append(figure.add_axes((left, 0.5 / height, wide, (below - 0.75) / height)))
    handles = [
        Line2D([], [], ls="", ms=6, mec=color(e), label=f"{e.number}  {short(e.label, 24)}", **shape(e, filled))
        for e in shown
    ]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(1 - BESIDE / WIDTH, 1 - 0.1 / height), fontsize=8,
                  frameon=False, handletextpad=0.2, borderaxespad=0, labelspacing=0.45)  # fmt: skip
    return figure, axes


def rows(shown: Sequence[Entry], each: float) -> tuple[Any, Any]:
    """Make a plot with one row per setting, labelled with its number and name."""
    from matplotlib.figure import Figure

    height = each * len(shown) + 0.95
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((BESIDE / WIDTH, 0.5 / height, (WIDTH - BESIDE - 0.85) / WIDTH, each * len(shown) / height))
    axes.set_yticks(range(len(shown)), [f"{entry.number}  {short(entry.label, 28)}" for entry in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def number(axes: Any, shown: Sequence[Entry], at: Sequence[Point], others: Sequence[Point] = ()) -> None:
    """Write each setting's number next to its point, without covering other numbers and points."""
    figure = axes.figure
    dots, more = ([tuple(axes.transData.transform(point)) for point in points] for points in (at, others))
    frame = axes.get_window_extent().extents
    em = figure.dpi / 72 * 8
    for entry, dot, place in zip(shown, dots, places(dots, 1.3 * em, 1.1 * em, tuple(frame), more), strict=True):
        away = ((place[0] - dot[0]) ** 2 + (place[1] - dot[1]) ** 2) ** 0.5
        axes.annotate(
            str(entry.number), axes.transData.inverted().transform(dot),
            xytext=axes.transData.inverted().transform(place), ha="center", va="center", fontsize=8,
            color=color(entry),
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#999999", "shrinkA": 4, "shrinkB": 2}
            if away > 1.5 * em else None,
        )  # fmt: skip


def along(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """Return points on these lines, so close together that no number fits between two of them."""
    result = [point for line in lines for point in line]
    for line in lines:
        for a, b in pairwise(line):
            result += [(a[0] + (b[0] - a[0]) * i / 8, a[1] + (b[1] - a[1]) * i / 8) for i in range(1, 8)]
    return result


def shape(entry: Entry, filled: bool = False) -> dict[str, Any]:
    """Return a square for plain decoding, a disc for lossless, a diamond for lossy, a triangle for an engine; the last
    two hollow unless `filled`."""
    marker = "s" if entry.config.method == "baseline" else "o" if entry.lossless else "^" if entry.served else "D"
    return {"marker": marker, "mfc": color(entry) if filled or entry.lossless else "white"}


def color(entry: Entry) -> str:
    return COLORS.get(entry.config.method, OTHER)


def shade(method: str, place: int, count: int) -> str:
    """Return a distinct color for each of a method's `count` settings, from light to the method's own, as #rrggbb."""
    value, white = COLORS.get(method, OTHER), LIGHTEST * (count - 1 - place) / max(1, count - 1)
    parts = (int(value[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in parts)


def short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 8]}…{name[-7:]}"
