"""The time split beside an evaluation: how much is spent on it, and that it is measured once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runner import comparison_runs, evaluate, flat_runs
from specexp.evaluation import time_split
from specexp.evaluation.time_split import TimeSplitPlan, plan
from specexp.profiling.time_breakdown import PARTS

TOY = ["--experiment", "toy_quick", "--methods", "baseline,speculative", "--gamma", "3"]


def took(label: str, seconds: float, tokens: int = 100, prefill: float = 0.0) -> dict[str, Any]:
    return {"label": label, "token_ids": [0] * tokens, "seconds": seconds, "prefill_seconds": prefill}


@pytest.mark.parametrize(
    "seconds,expected",
    [
        (1.0, TimeSplitPlan(4, 160)),  # four prompts with both settings: 16 seconds of 60
        (10.0, TimeSplitPlan(2, 160)),
        (20.0, TimeSplitPlan(1, 160)),
        (45.0, TimeSplitPlan(1, 44)),  # 1.35 seconds a token with both
        (200.0, None),  # ten tokens fit, which say nothing
    ],
)
def test_a_split_takes_about_a_minute_or_is_left_out(seconds: float, expected: TimeSplitPlan | None) -> None:
    # Two prompts; the second setting takes twice as long as the first.
    records = [took("a", seconds), took("b", 2 * seconds)] * 2
    assert plan(records, 160) == expected


def test_a_prefill_that_takes_the_minute_leaves_no_room() -> None:
    assert plan([took("a", 1.0, prefill=50.0), took("b", 1.0, prefill=50.0)], 160) is None


def test_shares_are_measured_once_and_logged_with_each_run(workplace: Path) -> None:
    assert evaluate(*TOY, "--limit", "2", "--output", "out").exit_code == 0
    path = workplace / "out" / "shares.json"
    split = json.loads(path.read_text())
    assert split["num_prompts"] == 2
    assert split["seconds"].keys() == {"baseline", "speculative_k3"}
    assert split["seconds"]["baseline"]["draft"] == 0
    assert split["seconds"]["speculative_k3"]["draft"] > 0
    for run in flat_runs().values():
        assert sum(run.data.metrics[f"share/{part}"] for part in PARTS) == pytest.approx(1)
    (comparison,) = comparison_runs()
    # Who goes on in a folder finds it measured.
    path.write_text(json.dumps({**split, "num_prompts": 1}))
    lines = (workplace / "out" / "records.jsonl").read_text().splitlines(keepends=True)
    (workplace / "out" / "records.jsonl").write_text("".join(lines[:-1]))
    assert evaluate(*TOY, "--limit", "2", "--output", "out", "--resume").exit_code == 0
    assert json.loads(path.read_text())["num_prompts"] == 1
    assert comparison.info.status == "FINISHED"


def test_in_a_batch_nothing_is_split(workplace: Path) -> None:
    result = evaluate(*TOY, "--limit", "4", "--batch", "2", "--output", "out")
    assert result.exit_code == 0, result.output
    assert not (workplace / "out" / "shares.json").exists()
    assert not (workplace / "out" / "figures" / "time.png").exists()


def test_what_would_take_too_long_is_left_out_and_said_so(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_split, "plan", lambda records, max_new_tokens: None)
    result = evaluate(*TOY, "--limit", "2", "--output", "out")
    assert result.exit_code == 0, result.output
    said = "The time split was left out: it would have taken more than 60 seconds."
    assert f"warning: {said}" in result.output
    assert said in (workplace / "out" / "report.html").read_text()
