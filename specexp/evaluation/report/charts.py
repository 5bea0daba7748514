"""The comparison's figures, as PNG files about 900 pixels wide: settings are numbered and named in a legend or in rows.

They are drawn from metrics alone. A figure without data is not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp.evaluation.report import chart_style
from specexp.evaluation.report.comparison import Comparison, Entry
from specexp.evaluation.report.figures import save
from specexp.method_specs import spec
from specexp.profiling.time_breakdown import HOST, PARTS
from specexp.storage.files import make_folder

PART_COLORS = dict(zip(PARTS, ("#e69f00", "#0072b2", "#d55e00", "#cc79a7", "#bbbbbb"), strict=True))
PART_NAMES = {"sampling": "sampling, accepting", HOST: "the rest"}


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure that was drawn."""

    name: str
    title: str
    caption: str
    path: Path


def draw(comparison: Comparison, folder: Path) -> list[Chart]:
    """Draw all figures that have data into `folder`."""
    import matplotlib

    make_folder(folder)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        result: list[Chart] = []
        for name, (title, caption, painter) in CHARTS.items():
            figure = painter(comparison)
            if figure is not None:
                path = folder / f"{name}.png"
                save(figure, path)
                result.append(Chart(name, title, caption, path))
    return result


def accepted_shares(entry: Entry) -> list[float]:
    """Return the share of rounds that accept 0, 1, 2, ... drafted tokens; empty if nothing is drafted and verified."""
    longest = max((len(r["accepted_histogram"]) for r in entry.records), default=0)
    counts = [sum(r["accepted_histogram"][i] for r in entry.records if i < len(r["accepted_histogram"]))
              for i in range(longest)]  # fmt: skip
    return [n / sum(counts) for n in counts]


def shares_by_depth(entry: Entry) -> list[float]:
    """Return the share of rounds whose first 1, 2, ... drafts, or tree levels, are all accepted."""
    metric = "tree/depth_" if entry.config.tree else "accept/position_"
    result: list[float] = []
    while (key := f"{metric}{len(result) + 1}") in entry.metrics:
        result.append(entry.metrics[key])
    return result


def _frontier(comparison: Comparison) -> Any:
    x, y = comparison.speed, comparison.quality
    shown = [entry for entry in comparison.entries if x in entry.metrics and y in entry.metrics]
    if not y or not shown:
        return None
    near = [entry for entry in shown if entry.served or spec(entry.config.method).verifies]
    apart = 1 < len(near) < len(shown)  # the draft alone is far from the others and would compress their range
    figure, axes = chart_style.plot_with_key(shown, 6.6 if apart else 4.6, below=1.9 if apart else 0.0)
    _frontier_panel(comparison, axes[0], near if apart else shown, near if apart else shown)
    if apart:
        _frontier_panel(comparison, axes[1], shown, [entry for entry in shown if entry not in near])
        axes[1].set(title="with the draft alone")
        axes[1].title.set(fontsize=8, color="#666666")
    axes[-1].set_xlabel(_speed_words(comparison))
    return figure


def _frontier_panel(comparison: Comparison, axes: Any, shown: Sequence[Entry], numbered: Sequence[Entry]) -> None:
    x, y = comparison.speed, comparison.quality
    for line in _lines(shown):
        color = chart_style.color(line[0])
        axes.plot([e.metrics[x] for e in line], [100 * e.metrics[y] for e in line], color=color, alpha=0.5, lw=1)
    for entry in shown:
        _error_bars(axes, entry, x, y)
        axes.plot(
            entry.metrics[x],
            100 * entry.metrics[y],
            ls="",
            ms=7,
            mec=chart_style.color(entry),
            **chart_style.shape(entry),
        )
    if comparison.baseline is not None and x.endswith("speedup"):
        axes.axvline(1, color="#bbbbbb", lw=0.8, zorder=0)
    what = "accuracy" if y == "quality/accuracy" else "outputs equal to plain's"
    axes.set(ylabel=f"{what}, %")
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.02 * (high - low), min(high, 100) + 0.08 * (min(high, 100) - low))
    chart_style.number(axes, numbered, [(e.metrics[x], 100 * e.metrics[y]) for e in numbered])


def _lines(shown: Sequence[Entry]) -> list[list[Entry]]:
    """Return the settings to join by a line: a method's dial (threshold, K, ...) at one length, else its lengths."""
    result = []
    for method in dict.fromkeys(entry.config.method for entry in shown):
        method_entries = [entry for entry in shown if entry.config.method == method]
        lengths = dict.fromkeys(_length(entry) for entry in method_entries)
        if len(lengths) < len(method_entries):
            result += [sorted((e for e in method_entries if _length(e) == length), key=_dial) for length in lengths]
        else:
            result.append(sorted(method_entries, key=_length))
    return [line for line in result if len(line) > 1]


def _length(entry: Entry) -> int:
    tree = entry.config.tree
    return tree.max_depth if tree else entry.config.gamma


def _dial(entry: Entry) -> float:
    config = entry.config
    if config.tree:
        return config.tree.tree_budget
    return config.dial if config.dial is not None else entry.metrics["accept/mean_length"]


def _error_bars(axes: Any, entry: Entry, x: str, y: str) -> None:
    spans = []
    for key, scale in ((x, 1), (y, 100)):
        value, ends = entry.metrics[key], entry.interval(key) or (entry.metrics[key],) * 2
        spans.append([[scale * max(0.0, value - ends[0])], [scale * max(0.0, ends[1] - value)]])
    axes.errorbar(
        entry.metrics[x], 100 * entry.metrics[y], xerr=spans[0], yerr=spans[1],
        fmt="none", ecolor=chart_style.color(entry), alpha=0.4, lw=1,
    )  # fmt: skip


def _histogram(comparison: Comparison) -> Any:
    shown = [(entry, shares) for entry in comparison.entries if (shares := accepted_shares(entry))]
    if not shown:
        return None
    figure, axes = chart_style.rows([entry for entry, _ in shown], 0.36)
    tallest = max(max(shares) for _, shares in shown)
    longest = max(len(shares) for _, shares in shown)
    for row, (entry, shares) in enumerate(shown):
        heights = [0.86 * share / tallest for share in shares]
        axes.bar(
            range(len(shares)), [-h for h in heights], bottom=row + 0.45, width=0.8, color=chart_style.color(entry)
        )
        axes.axhline(row + 0.45, color="#dddddd", lw=0.6, zorder=0)
        text = f"{entry.metrics['accept/mean_length']:.2f}"
        axes.text(longest - 0.3, row + 0.3, text, ha="left", va="baseline")
    axes.text(longest - 0.3, -0.62, "tokens/call", ha="left", va="baseline", fontsize=8, color="#666666")
    axes.set(xlim=(-0.7, longest - 0.4), xlabel=f"drafted tokens accepted in a round (tallest bar: {tallest:.0%})")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _positions(comparison: Comparison) -> Any:
    shown = [entry for entry in comparison.entries if shares_by_depth(entry)]
    if not shown:
        return None
    figure, (axes,) = chart_style.plot_with_key(shown, 4.4, filled=True)
    for entry in shown:
        shares = [100 * share for share in shares_by_depth(entry)]
        style = "--" if entry.config.tree else "-"
        axes.plot(
            range(1, len(shares) + 1), shares, style, color=chart_style.color(entry), marker=".", lw=1.2, alpha=0.8
        )
    axes.set(xlabel="position in the draft (dashed: level of the tree)", ylabel="rounds accepted up to here, %")
    axes.set_ylim(0, 106)
    axes.set_xlim(0.6, max(len(shares_by_depth(entry)) for entry in shown) + 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    drawn = [[(i, 100 * share) for i, share in enumerate(shares_by_depth(e), 1)] for e in shown]
    chart_style.number(axes, shown, [line[-1] for line in drawn], chart_style.along(drawn))
    return figure


def _time(comparison: Comparison) -> Any:
    shown = [entry for entry in comparison.entries if entry.shares and "speed/tokens_per_second" in entry.metrics]
    if not shown:
        return None
    figure, axes = chart_style.rows(shown, 0.3)
    left = [0.0] * len(shown)
    per_token = [1000 / entry.metrics["speed/tokens_per_second"] for entry in shown]
    for part in PARTS:
        widths = [entry.shares[part] * ms for entry, ms in zip(shown, per_token, strict=True)]
        axes.barh(range(len(shown)), widths, left=left, height=0.7, color=PART_COLORS[part],
                  label=PART_NAMES.get(part, part))  # fmt: skip
        for row, (entry, width) in enumerate(zip(shown, widths, strict=True)):
            if width > 0.07 * max(per_token):
                axes.text(left[row] + width / 2, row, f"{entry.shares[part]:.0%}", ha="center", va="center",
                          fontsize=8, color="white" if part in ("target", "judge") else "black")  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="milliseconds per token, as timed, split by the shares of an instrumented run")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(PARTS), fontsize=8, frameon=False, borderpad=0,
                handlelength=1, columnspacing=1)  # fmt: skip
    return figure


def _predicted(comparison: Comparison) -> Any:
    y = "speed/speedup"
    shown = [entry for entry in comparison.entries if "speed/attainable" in entry.metrics and y in entry.metrics]
    if not shown:
        return None
    figure, (axes,) = chart_style.plot_with_key(shown, 4.6, filled=True)
    most, drawn = 0.0, []
    for entry in shown:
        value, ends = entry.metrics[y], entry.interval(y) or (entry.metrics[y],) * 2
        attainable = entry.metrics["speed/attainable"]
        predicted = entry.metrics.get("speed/predicted_speedup", attainable)
        axes.plot([attainable, predicted], [value, value], color=chart_style.color(entry), lw=0.8, alpha=0.5)
        axes.errorbar(attainable, value, yerr=[[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]],
                      fmt=chart_style.shape(entry)["marker"], ms=5, color=chart_style.color(entry), lw=1)  # fmt: skip
        if "speed/predicted_speedup" in entry.metrics:
            axes.plot(
                predicted, value, chart_style.shape(entry)["marker"], ms=5, mfc="white", mec=chart_style.color(entry)
            )
        most = max(most, attainable, predicted, value, ends[1])
        drawn += [[(attainable, value), (predicted, value)], [(attainable, ends[0]), (attainable, ends[1])]]
    axes.plot([0, 1.05 * most], [0, 1.05 * most], color="#bbbbbb", lw=0.8, zorder=0)
    axes.set(xlim=(0, 1.05 * most), ylim=(0, 1.05 * most), ylabel="measured speed-up",
             xlabel="speed-up that the calls alone allow (filled: attainable, hollow: i.i.d. formula)")  # fmt: skip
    chart_style.number(
        axes, shown, [(e.metrics["speed/attainable"], e.metrics[y]) for e in shown], chart_style.along(drawn)
    )
    return figure


def _speed_words(comparison: Comparison) -> str:
    batch = comparison.experiment.batch
    together = "" if batch == 1 else f" in batches of {batch}"
    if comparison.baseline is None:
        return f"tokens a second{together}"
    first = next((entry for entry in comparison.entries if entry.served), None)
    if first is None:
        return f"times plain decoding{together}"
    if first is comparison.baseline:
        return f"times {first.label}"
    return f"times plain decoding; of engines, times {first.label}"


CHARTS: dict[str, tuple[str, str, Callable[[Comparison], Any]]] = {
    "frontier": (
        "Speed and quality",
        "Every setting with its 95 % intervals; discs are lossless, hollow diamonds lossy or refuted by their outputs,"
        " the square is plain decoding, hollow triangles are engines."
        " Lines join a method's settings that differ in one value: threshold, K, budget or draft length.",
        _frontier,
    ),
    "accepted": ("Accepted tokens", "Share of rounds by how many drafted tokens they accept.", _histogram),
    "positions": (
        "Acceptance by position",
        "Share of rounds in which all drafts up to a position are accepted, of the rounds with that many drafts before"
        " an EOS; for a tree, up to a level.",
        _positions,
    ),
    "time": (
        "Where the time goes",
        "Draft and target forwards, judge, sampling with accepting, and the rest: the host's own work.",
        _time,
    ),
    "predicted": (
        "Predicted and measured",
        "The measured speed-up against the one that the calls alone would allow, by their costs in the run. On the"
        " diagonal, the two are equal.",
        _predicted,
    ),
}  # fmt: skip
