"""The figure and the page of a benchmark under load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader

from specexp.judge_comparison.comparison_page import embedded, environment
from specexp.load_testing.capacity import BINDS, MOST_LAG
from specexp.load_testing.results import FIGURE, PAGE, UNITS, cell, sentences, span, warnings
from specexp.storage.files import write_whole, writing

PANELS = (
    ("tokens_per_second", "tokens per second", 1.0), ("ttft_median", "time to first token, ms (median, to p99)", 1e3),
)  # fmt: skip


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write figure and page."""
    draw(folder / FIGURE, result)
    pages = environment()
    assert pages.loader is not None
    pages.loader = ChoiceLoader([PackageLoader("specexp.load_testing"), pages.loader])
    page = pages.get_template("load.html").render(
        result=result, said=sentences(result), warnings=warnings(result), figure=embedded(folder / FIGURE), cell=cell,
        span=span, units=UNITS, binds=BINDS, lag=MOST_LAG,
    )  # fmt: skip
    write_whole(folder / PAGE, page)


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Draw throughput with its interval, and time to first token, over the levels of each kind of load."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in UNITS if any(level["kind"] == kind for level in result["levels"])]
    figure = Figure(figsize=(10, 4.2 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, row in zip(kinds, rows, strict=True):
        levels = [level for level in result["levels"] if level["kind"] == kind]
        x = [level["value"] for level in levels]
        for axes, (name, label, scale) in zip(row, PANELS, strict=True):
            for number, method in enumerate(result["methods"]):
                values = [level["methods"][method] for level in levels]
                y = [scale * each[name]["value"] for each in values]
                ends = ("ttft_p99", "value", "value") if name == "ttft_median" else (name, "high", "low")
                high = [scale * each[ends[0]][ends[1]] for each in values]
                low = y if name == "ttft_median" else [scale * each[name][ends[2]] for each in values]
                reach = [
                    [max(0.0, a - b) for a, b in zip(y, low, strict=True)],
                    [max(0.0, a - b) for a, b in zip(high, y, strict=True)],
                ]
                axes.errorbar(x, y, reach, marker="o", capsize=2, color=f"C{number}", label=method)
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [f"{each:g}" for each in x])
            axes.set(xlabel=f"{kind.replace('_', ' ')}, {UNITS[kind]}", ylabel=label, ylim=(0, None))
            axes.spines[["top", "right"]].set_visible(False)
        row[0].legend(frameon=False)
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
