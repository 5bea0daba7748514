"""Outputs that were cut off, or hold no answer: shares in table, report and runs, a warning that says what to raise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runner import SMALL, evaluate, flat_runs
from specexp.evaluation.report.table import columns, terminal
from specexp.metrics import incomplete


def record(reason: str = "stop", answer: str | None = "4", correct: bool | None = True) -> dict[str, Any]:
    return {"finish_reason": reason, "answer": answer, "correct": correct}


def test_shares_count_what_was_cut_and_what_could_not_be_read() -> None:
    ended, length, context = record(), record("length", None, False), record("context", "5", False)
    ungraded = record("stop", None, None)
    assert incomplete.metrics([ended, length, context, ungraded]) == {
        "quality/cut_share": 0.5,
        "quality/unparsed_share": pytest.approx(1 / 3),
    }
    assert incomplete.metrics([ungraded, record("length", None, None)]) == {"quality/cut_share": 0.5}
    assert [incomplete.is_unparsed(each) for each in (ended, length, context, ungraded)] == [False, True, False, False]


def test_a_tenth_is_worth_a_warning_that_names_the_setting() -> None:
    def warned(*baseline: dict[str, Any], others: int) -> list[str]:
        return list(incomplete.warnings({"baseline": [*baseline, *[record()] * others], "other": [record()]}, 160))

    assert warned(record("length"), others=10) == []
    assert warned(record("length"), others=9) == [
        "baseline: 10 % of the outputs were cut off at max_new_tokens (160); raise max_new_tokens."
    ]
    (context,) = warned(record("context"), others=1)
    assert context.startswith("baseline: 50 % of the outputs were cut off at the end of the model's context; shorten")
    assert "max_new_tokens" not in context
    (unread,) = warned(record("stop", None, False), others=1)
    assert unread.startswith(
        "baseline: 50 % of the graded outputs hold no answer that could be read and count as wrong"
    )
    assert unread.endswith("look at some in the records.")
    cut, unread = warned(record("length", None, False), others=1)
    assert "raise max_new_tokens" in cut
    assert unread.endswith("most of them were cut off.")


def test_settings_with_as_many_share_a_warning() -> None:
    both = {"a": [record("length")], "b": [record("length"), record()], "c": [record()]}
    (warning,) = incomplete.warnings(both, 7)
    assert warning.startswith("a, b: up to 100 % of the outputs")


def test_a_short_limit_shows_in_terminal_report_and_runs(workplace: Path) -> None:
    result = evaluate(*SMALL, "--max-new-tokens", "12", "--methods", "baseline", "--show", "0", "--output", "out")
    assert result.exit_code == 0, result.output
    head, row = next((a, b) for a, b in zip(result.stdout.splitlines(), result.stdout.splitlines()[1:], strict=False)
                     if a.lstrip().startswith("tok/s"))  # fmt: skip
    heads = re.split(r"\s{2,}", head.strip())
    cells = dict(zip(heads[-3:], re.split(r"\s{2,}", row.strip())[-3:], strict=True))
    assert (cells["cut off"], cells["blank"]) == ("100%", "100%")
    warning = "baseline: 100 % of the outputs were cut off at max_new_tokens (12); raise max_new_tokens."
    assert f"warning: {warning}" in result.stdout
    page = (workplace / "out/report.html").read_text()
    assert warning in page
    assert 'data-metric="quality/cut_share"' in page
    assert json.loads((workplace / "out/summary.json").read_text())["baseline"]["quality/unparsed_share"] == 1
    assert flat_runs()["baseline"].data.metrics["quality/cut_share"] == 1


def test_the_terminal_has_the_columns_where_there_is_something_to_say_and_the_page_always() -> None:
    clean = {"a": {"quality/cut_share": 0.0, "quality/unparsed_share": 0.0, "accept/mean_length": 2.0}}
    assert terminal(clean, greedy=True).split() == ["tokens/call", "a", "2.00"]
    assert [c.head for c in columns(clean, True, 1, 1)] == ["tokens/call", "cut off", "blank"]
    some = {**clean, "b": {"quality/cut_share": 0.25, "quality/unparsed_share": 0.0, "accept/mean_length": 2.0}}
    assert [line.split() for line in terminal(some, greedy=True).splitlines()] == [
        ["tokens/call", "cut", "off"], ["a", "2.00", "0%"], ["b", "2.00", "25%"],
    ]  # fmt: skip
