"""Judges that decode another task than the one whose labels they learned from: tags, and what the report warns of.

A threshold keeps its recall on the task it was calibrated on; on another one, only the accuracy tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from specexp.evaluation.report.comparison import Comparison, Entry

TASK, TRANSFER = "judge_task", "transfer"  # tags of a method's run


def tags(judge_task: str, task: str) -> dict[str, str]:
    """The tags of a run with a judge of this task; none if the judge does not say its task."""
    return {TASK: judge_task, TRANSFER: str(judge_task != task).lower()} if judge_task else {}


def warnings(comparison: Comparison, judges: Mapping[str, Mapping[str, Any]], task: str) -> Iterator[str]:
    """Yield a warning for each judge of another task, with the accuracy of the settings that decode with it.

    `judges` has the facts of each by its address, as in judges.json.
    """
    for name, facts in judges.items():
        other = facts.get("task", "")
        entries = [entry for entry in comparison.entries if entry.config.judge == name]
        if not other or other == task or not entries:
            continue
        threshold = "; its threshold was calibrated there" if any(e.config.threshold is None for e in entries) else ""
        yield (
            f"The judge '{name}' was mined on task '{other}' and decodes task '{task}' (transfer){threshold}. Accuracy"
            f" here: {'; '.join(_accuracy(entry, comparison.baseline) for entry in entries)}."
        )


def _accuracy(entry: Entry, baseline: Entry | None) -> str:
    key = "quality/accuracy"
    if key not in entry.metrics:
        return f"{entry.label} unknown, since no answer is graded"
    result = f"{entry.label} {entry.metrics[key]:.1%}"
    if (interval := entry.interval(key)) is not None:
        result += f" (95 %: {interval[0]:.1%} to {interval[1]:.1%})"
    if baseline is not None and key in baseline.metrics:
        result += f", plain decoding {baseline.metrics[key]:.1%}"
    if (p := entry.metrics.get("quality/mcnemar_p")) is not None:
        result += f" (McNemar p = {p:.2g})"
    return result
