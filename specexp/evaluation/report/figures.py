"""Figures of evaluations and benchmarks, as PNG files; imports matplotlib only when drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specexp.metrics.trees import TreeSums
from specexp.storage.files import writing
from specexp.storage.records import Record


def draw_trees(path: Path, name: str, records: Sequence[Record]) -> None:
    """Draw how deep the accepted paths of a setting's trees go, and which of the draft's choices they take."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sums = TreeSums.of(records)
    panels = (
        (left, 1, sums.reached(), "depth", "rounds accepted to this depth"),
        (right, 0, sums.by_rank(), "rank by the draft (0 = its favourite)", "draws that matched it"),
    )
    for axes, first, shares, across, up in panels:
        axes.bar(range(first, first + len(shares)), [100 * share for share in shares], color="#4c72b0")
        axes.set(xlabel=across, ylabel=f"{up}, %", ylim=(0, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(name)
    save(figure, path)


def draw_benchmark(path: Path, result: Mapping[str, Any]) -> None:
    """Draw a benchmark's rates with intervals, time split, and measured and attainable speed-up by draft length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    rates, split, lengths = figure.subplots(1, 3, width_ratios=(1.3, 1.1, 1))

    names = list(result["methods"])[::-1]
    speeds = [result["methods"][name]["end_to_end_tokens_per_second"] for name in names]
    values = [one["value"] for one in speeds]
    # A bootstrap interval need not contain its value.
    errors = [[max(0.0, x["value"] - x["low"]) for x in speeds], [max(0.0, x["high"] - x["value"]) for x in speeds]]
    colors = ["#4c72b0" if "tokens_per_second" in result["methods"][name] else "#b0b0b0" for name in names]
    rates.barh(names, values, xerr=errors, color=colors)
    rates.set(xlabel="tokens per second, end to end (blue: this project)")

    left = dict.fromkeys(result["shares"], 0.0)
    parts = list(next(iter(result["shares"].values())))
    for part in parts:
        widths = [100 * shares[part] for shares in result["shares"].values()]
        split.barh(list(left), widths, left=list(left.values()), label=part)
        left = {name: left[name] + width for name, width in zip(left, widths, strict=True)}
    split.set(xlabel="share of decode time, %", xlim=(0, 100))
    split.legend(loc="upper center", ncols=len(parts), fontsize="small", bbox_to_anchor=(0.5, 1.14))

    gammas = [int(gamma) for gamma in result["gammas"]]
    for key, style in (("attainable", "--"), ("speedup", "-")):
        lengths.plot(gammas, [one[key] for one in result["gammas"].values()], style, marker="o", label=key)
    lengths.set(xlabel="gamma", ylabel="times plain decoding", ylim=(0, None))
    lengths.legend()
    for axes in (rates, split, lengths):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a PNG atomically."""
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
