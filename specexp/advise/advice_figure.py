"""Advice as a figure: predicted speed-up by draft length and tree budget, its limit, and the measured points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specexp.evaluation.report.figures import save

COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")


def draw_advice(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the numbers of `advice_report.as_json`; one panel for chains, one for trees if there are any."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    groups: dict[bool, dict[str, list[Mapping[str, Any]]]] = {False: {}, True: {}}
    for each in sorted(result["candidates"], key=lambda x: x["size"]):
        groups[each["method"] == "specexec"].setdefault(each["kind"], []).append(each)
    panels = [(trees, kinds) for trees, kinds in groups.items() if kinds]
    figure = Figure(figsize=(6.2 * len(panels) + 1.5, 4.8), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (trees, kinds) in zip(row, panels, strict=True):
        for color, (kind, candidates) in zip(_cycled(len(kinds)), kinds.items(), strict=True):
            _draw(axes, kind, candidates, color, result["recommended"])
        axes.axhline(1, color="#888888", linewidth=1, linestyle=":")
        axes.set(xlabel="tree budget, nodes" if trees else "gamma, most drafted tokens a round", ylim=(0, None))
        if trees:
            axes.set_xscale("log", base=2)
        sizes = sorted({each["size"] for candidates in kinds.values() for each in candidates})
        axes.set_xticks(sizes if len(sizes) < 20 else sizes[:: len(sizes) // 10], minor=False)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False)
    row[0].set_ylabel("times plain decoding (dotted line)")
    figure.suptitle(f"recommended: {result['recommended']}")
    save(figure, path)


def _cycled(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _draw(axes: Any, kind: str, candidates: Sequence[Mapping[str, Any]], color: str, recommended: str) -> None:
    sizes = [each["size"] for each in candidates]
    marker = "" if len(sizes) > 1 else "_"
    axes.plot(sizes, [x["attainable"] for x in candidates], "--", marker=marker, color=color, alpha=0.5,
              label=f"{kind}: attainable, calls alone")  # fmt: skip
    axes.plot(sizes, [x["speedup"] for x in candidates], "-", marker=marker, color=color, label=f"{kind}: predicted")
    ran = [x for x in candidates if x["measured"]]
    if ran:
        result = [x["measured"]["speedup"] for x in ran]
        values = [x["value"] for x in result]
        # A bootstrap interval need not contain its own value.
        spans = [[max(0.0, x["value"] - x["low"]) for x in result], [max(0.0, x["high"] - x["value"]) for x in result]]
        axes.errorbar([x["size"] for x in ran], values, yerr=spans, fmt="o", color=color, capsize=3,
                      label=f"{kind}: measured, 95 %")  # fmt: skip
    for each in ran:
        if each["label"] == recommended:
            axes.plot(each["size"], each["measured"]["speedup"]["value"], "o", markersize=15, markerfacecolor="none",
                      markeredgecolor="black")  # fmt: skip
