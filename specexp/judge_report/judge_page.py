"""Writes the report of a judge: a page, a figure and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, PackageLoader

from specexp.judge.judge import Facts
from specexp.judge.trained_judge import write_table
from specexp.judge_comparison.comparison_page import embedded, environment
from specexp.judge_report.cases import Case
from specexp.judge_report.reliability import Reliability
from specexp.judge_report.token_kinds import KindShare
from specexp.storage.files import write_whole, writing

PAGE, FIGURE, TABLE = "judge_report.html", "reliability.png", "token_kinds.csv"


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What the page says of one judge on the test prompts of one label set."""

    name: str
    facts: Facts
    labels: str
    num_prompts: int
    metrics: Mapping[str, float]
    reliability: Reliability
    kinds: Sequence[KindShare]
    cases: Sequence[Case]
    notes: Sequence[str]


def write(folder: Path, report: JudgeReport) -> list[Path]:
    """Write the three files; return their paths."""
    write_table(folder / TABLE, [each.row() for each in report.kinds])
    draw(folder / FIGURE, report.reliability)
    pages = environment()
    assert pages.loader is not None
    pages.loader = ChoiceLoader([PackageLoader("specexp.judge_report"), pages.loader])
    parts = [(title, [case for case in report.cases if case.passes == ok]) for title, ok in _TITLES]
    page = pages.get_template("judge_report.html").render(
        report=report, parts=parts, figure=embedded(folder / FIGURE), metrics=report.metrics
    )
    write_whole(folder / PAGE, page)
    return [folder / name for name in (PAGE, FIGURE, TABLE)]


_TITLES = (("Passes", True), ("Refusals", False))


def draw(path: Path, reliability: Reliability) -> None:
    """Draw the calibration curve with the interval of each bin, over how many mismatches each bin has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    curve, counts = figure.subplots(2, height_ratios=[3, 1], sharex=True)
    bins = reliability.bins
    means, shares = [each.mean for each in bins], [each.share for each in bins]
    reach = [[b.share - b.share_low for b in bins], [b.share_high - b.share for b in bins]]
    curve.errorbar(means, shares, [[max(0.0, each) for each in side] for side in reach], fmt="o-", capsize=2)
    curve.axline((0, 0), slope=1, color="0.7", linewidth=1)
    curve.set(ylabel="important share", xlim=(0, 1), ylim=(0, 1), title="Reliability on test prompts")
    counts.bar([(b.low + b.high) / 2 for b in bins], [b.mismatches for b in bins], width=0.09, color="0.6")
    counts.set(xlabel="predicted probability", ylabel="mismatches")
    for axes in (curve, counts):
        axes.spines[["top", "right"]].set_visible(False)
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
