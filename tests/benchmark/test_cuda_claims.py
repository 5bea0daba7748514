"""On CUDA, attainable speed-ups are claimed where calls were timed by events: one by one they cost more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runner import evaluate, flat_runs
from helpers.comparisons import COSTS, compared, made_up, settings
from helpers.fake_clock import prepared_toy
from specexp.advise.advice_text import _limits
from specexp.benchmark import benchmark_report
from specexp.evaluation.report import publish, run_specs
from specexp.metrics.summary import summarise
from specexp.profiling.call_bench import CallBench
from specexp.storage import environment

TOY = ["--experiment", "toy_quick", "--methods", "baseline,speculative", "--gamma", "2", "--limit", "3",
       "--max-new-tokens", "8", "--show", "0", "--output", "out"]  # fmt: skip


def kind(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every model say that it is on this device."""
    describe = environment.describe

    def told(*given: Any) -> dict[str, Any]:
        facts = describe(*given)
        return {**facts, "models": {role: {**model, "device": device} for role, model in facts["models"].items()}}

    monkeypatch.setattr(environment, "describe", told)


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("device,events", [("cpu", False), ("cuda:1", False), ("cuda:1", True)])
def test_an_evaluation_claims_attainable_speed_ups_where_calls_were_timed_as_decoding_makes_them(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, device: str, events: bool
) -> None:
    kind(device, monkeypatch)
    monkeypatch.setattr(CallBench, "by_events", property(lambda bench: events))
    for module in (publish, run_specs):
        monkeypatch.setattr(module, "is_disturbed", lambda metrics: True)
    result = evaluate(*TOY)
    assert result.exit_code == 0, result.output
    summary = json.loads((workplace / "out" / "summary.json").read_text())["speculative_k2"]
    claimed = {name for name in summary if name in ("speed/attainable", "speed/realised", "speed/predicted_speedup")}
    tags, page = flat_runs()["speculative_k2"].data.tags, (workplace / "out" / "report.html").read_text()
    assert {"speed/c", "speed/v", "speed/speedup"} <= set(summary), "what was measured is there"
    assert json.loads((workplace / "out" / "costs.json").read_text()).get("events", 0) == events
    if device == "cpu" or events:
        assert len(claimed) == 3
        assert "something else was running" in result.output
        assert "the clock was disturbed" in tags["warning"]
        assert "speed-ups are not shown" not in result.output
    else:
        assert not claimed
        assert "something else was running" not in result.output + page
        assert "warning" not in tags
        assert "Attainable and predicted speed-ups are not shown: on CUDA" in result.output
        assert "speed-ups are not shown: on CUDA" in page
        assert not (workplace / "out" / "figures" / "predicted.png").exists()


def test_a_chart_and_a_table_do_without() -> None:
    comparison = made_up(settings("baseline,speculative"), 8)
    for entry in comparison.entries:
        metrics = summarise(entry.records, comparison.entries[0].records, COSTS, entry.config.gamma, claimed=False)
        assert "speed/attainable" not in metrics
    assert compared(comparison.experiment, {e.label: list(e.records) for e in comparison.entries}, 8).claimed


def test_a_benchmarks_table_leaves_empty_what_it_does_not_claim() -> None:
    row = {"alpha": 0.8, "c": 0.1, "v": 1.2, "speedup": 2.0}
    result: dict[str, Any] = {
        "methods": {}, "skipped": {}, "batch": None, "shares": {}, "differences": [], "outputs_equal": True,
        "gammas": {"4": row, "8": {**row, "attainable": 2.5, "realised": 0.8}},
    }  # fmt: skip
    lines = [line for line in benchmark_report.table(result).splitlines() if line.strip().startswith(("4 ", "8 "))]
    assert lines[0].split() == ["4", "0.800", "0.100", "1.20", "2.00x"]
    assert lines[1].split() == ["8", "0.800", "0.100", "1.20", "2.50x", "2.00x", "0.80"]


def test_advice_says_that_its_predictions_are_rough() -> None:
    from dataclasses import replace

    from specexp.advise.advice import measure

    advice = measure(prepared_toy(gamma="2", limit=2, repeats=1, max_new_tokens=6), False)
    assert not any("CUDA" in words for words in _limits(advice))
    facts = {**advice.environment, "models": {"target": {"device": "cuda:0"}}}
    by_events = replace(advice.forecast, costs=replace(advice.forecast.costs, by_events=True))
    timed = replace(advice, environment=facts, forecast=by_events)
    assert not any("CUDA" in words for words in _limits(timed))
    assert any(
        "On CUDA a call that is timed by itself" in words for words in _limits(replace(advice, environment=facts))
    )
