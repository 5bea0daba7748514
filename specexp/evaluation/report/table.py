"""The comparison as a table: the same columns in the terminal and on the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from specexp.evaluation.report.formatting import Form, chance, count, hundredths, percent, points, times


@dataclass(frozen=True, slots=True)
class Column:
    """A metric under a head. `terminal` columns are shown in the terminal too, with their interval if `spanned`, and
    those of a `fault` only if some setting has it.

    On the page, columns about `calls` are in a second table, after that of speed and quality.
    """

    head: str
    key: str
    form: Form
    terminal: bool = True
    spanned: bool = False
    calls: bool = False
    end: Form | None = None  # for an interval's ends, if not as for the value
    short: Form | None = None  # for the terminal
    fault: bool = False


COLUMNS = (
    Column("tok/s", "speed/tokens_per_second", count),
    Column("speed-up", "speed/speedup", times, spanned=True),
    Column("speed-up p", "speed/speedup_p", chance, terminal=False),
    Column("first token, s", "speed/time_to_first_token", "{:.3f}".format),
    Column("s/token", "speed/time_per_token", "{:.4f}".format),
    Column("attainable", "speed/attainable", times, calls=True),
    Column("realised", "speed/realised", percent, terminal=False, calls=True),
    Column("predicted", "speed/predicted_speedup", times, terminal=False, calls=True),
    Column("prompts/s", "batch/prompts_per_second", "{:.2f}".format),
    Column("tok/s", "batch/tokens_per_second", count),
    Column("vs baseline", "batch/speedup", times, spanned=True),
    Column("tokens/call", "accept/mean_length", "{:.2f}".format, calls=True),
    Column("alpha", "accept/alpha", "{:.3f}".format, calls=True),
    Column("c", "speed/c", "{:.3f}".format, terminal=False, calls=True),
    Column("v", "speed/v", "{:.2f}".format, terminal=False, calls=True),
    Column("with prefill", "speed/speedup_end_to_end", times, terminal=False, calls=True),
    Column("target calls/token", "calls/target_per_token", "{:.3f}".format, terminal=False, calls=True),
    Column("draft calls/token", "calls/draft_per_token", "{:.3f}".format, terminal=False, calls=True),
    Column("accuracy", "quality/accuracy", percent, end=hundredths, short="{:.1%}".format),
    Column("difference, points", "quality/accuracy_delta", points, terminal=False),
    Column("McNemar p", "quality/mcnemar_p", chance),
    Column("= baseline", "quality/equal_to_baseline", percent, short="{:.0%}".format),
    Column("cut off", "quality/cut_share", percent, short="{:.0%}".format, fault=True),
    Column("blank", "quality/unparsed_share", percent, short="{:.0%}".format, fault=True),
)


def columns(metrics: Mapping[str, Mapping[str, float]], greedy: bool, batch: int, repeats: int) -> list[Column]:
    """Return the columns that any of these settings has.

    Sampled outputs differ from the baseline's even if their distribution is the same: no column compares them. Speeds
    of prompts that were decoded in a batch have the batch in their heads. McNemar's test is for one repeat; for
    several, the paired test flips prompts.
    """
    other = "batch/" if batch == 1 else "speed/"
    served = any("speed/time_per_token" in each for each in metrics.values())
    result = []
    for column in COLUMNS:
        if column.key.startswith(other) or (column.key == "quality/equal_to_baseline" and not greedy):
            continue
        if column.key == "speed/time_to_first_token" and not served:
            continue
        if not any(column.key in each for each in metrics.values()):
            continue
        head = f"{column.head}, batch {batch}" if column.key.startswith("batch/") else column.head
        head = "accuracy p" if column.key == "quality/mcnemar_p" and repeats > 1 else head
        result.append(replace(column, head=head))
    return result


def terminal(
    metrics: Mapping[str, Mapping[str, float]],
    greedy: bool,
    batch: int = 1,
    repeats: int = 1,
    outputs: Mapping[str, str] | None = None,
) -> str:
    """Format metrics by name as aligned text; an empty cell is a metric that the method does not have.

    `outputs` describe the output of each name in words: the last column.
    """
    heads, cells = [""], [[name] for name in metrics]
    for column in columns(metrics, greedy, batch, repeats):
        if not column.terminal or (column.fault and not any(result.get(column.key) for result in metrics.values())):
            continue
        form = column.short or column.form
        heads.append(column.head)
        for row, result in zip(cells, metrics.values(), strict=True):
            row.append(form(result[column.key]) if column.key in result else "")
        ends = [f"{column.key}_{end}" for end in ("low", "high")]
        if column.spanned and any(ends[0] in result for result in metrics.values()):
            heads.append("95 %")
            for row, result in zip(cells, metrics.values(), strict=True):
                row.append("-".join(f"{result[end]:.2f}" for end in ends) if ends[0] in result else "")
    if outputs is not None:
        heads.append("output")
        for row, name in zip(cells, metrics, strict=True):
            row.append(outputs[name])
    return _aligned([heads, *cells], outputs is not None)


def _aligned(rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """Align names to the left and numbers to the right; the last column to the left if it holds `words`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        if words:
            padded[-1] = cells[-1]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)
