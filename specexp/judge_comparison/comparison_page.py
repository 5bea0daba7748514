"""Writes a comparison of judges: table, figure and page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from specexp.judge.labels import LabelSet
from specexp.judge.trained_judge import write_table
from specexp.judge_comparison.comparison import ROWS, ComparedJudge
from specexp.storage.files import write_whole, writing

TABLE, FIGURE, PAGE = "comparison.csv", "comparison.png", "comparison.html"


def write(
    folder: Path, judges: Sequence[ComparedJudge], chosen: str, said: Sequence[str], labels: LabelSet
) -> list[Path]:
    """Write the three files; return their paths."""
    rows = [each.row() for each in judges]
    write_table(folder / TABLE, rows)
    draw(folder / FIGURE, judges, chosen)
    page = environment().get_template("comparison.html").render(
        said=said, judges=judges, chosen=chosen, rows=ROWS, task=labels.manifest["task"], labels=labels.hash,
        figure=embedded(folder / FIGURE),
    )  # fmt: skip
    write_whole(folder / PAGE, page)
    return [folder / name for name in (TABLE, FIGURE, PAGE)]


def draw(path: Path, judges: Sequence[ComparedJudge], chosen: str) -> None:
    """Draw ROC-AUC with its interval over what judging costs; squares need one more draft forward a round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    kinds = sorted({each.judge.judge.facts.kind for each in judges})
    for each in judges:
        color = f"C{kinds.index(each.judge.judge.facts.kind)}"
        reach = [[max(0.0, each.roc_auc - each.low)], [max(0.0, each.high - each.roc_auc)]]
        form, size = "s" if each.extra_draft_forwards else "o", 9 if each.name == chosen else 5
        axes.errorbar(each.microseconds, each.roc_auc, reach, fmt=form, color=color, capsize=2, markersize=size)
        axes.annotate(each.name, (each.microseconds, each.roc_auc), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xlabel="judging, microseconds for each drafted token", ylabel="ROC-AUC on test prompts", xscale="log",
        title="Judges; squares take one more draft forward a round",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def environment() -> Environment:
    """The templates of this package; texts are escaped."""
    return Environment(
        loader=PackageLoader("specexp.judge_comparison"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def embedded(path: Path) -> str:
    """A figure as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
