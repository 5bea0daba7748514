"""Evaluations on simulated workers: the records of one process, whoever dies, and what is said of speeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import Result

from helpers.cli_runner import comparison_runs, evaluate, flat_runs, is_refused, records
from helpers.simulated_pool import SimulatedPool, at_random, simulated_command
from specexp.storage.records import Record, line_of, record_in
from specexp.workers import evaluation_run
from specexp.workers.evaluating import Decoded, DecodeUnit, TokenViewUnit

CLOCKS = ("checksum", "seconds", "prefill_seconds", "time_to_first_token", "environment")
TOY = ("--experiment", "toy_quick", "--limit", "6", "--methods", "baseline,speculative,specexec", "--show", "1")


def bytes_of(folder: Path) -> list[str]:
    """The lines of a folder's records without timings."""
    return [json.dumps({key: value for key, value in each.items() if key not in CLOCKS}) for each in records(folder)]


@pytest.fixture
def on_simulated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, SimulatedPool]]:
    """Runs evaluate on simulated workers."""
    return simulated_command(monkeypatch, evaluation_run, evaluate)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--temperature", "1", "--repeats", "2"), ("--batch", "2", "--limit", "10")])
def test_records_are_those_of_one_process(more: tuple[str, ...], workplace: Path, on_simulated: Any) -> None:
    assert evaluate(*TOY, *more, "--output", "one").exit_code == 0
    result, _ = on_simulated(*TOY, *more, "--output", "of_3", number=3)
    assert result.exit_code == 0, result.output
    assert bytes_of(workplace / "of_3") == bytes_of(workplace / "one")
    result, pool = on_simulated(*TOY, *more, "--output", "killed", number=3, dies=at_random(1, 0.4, 8))
    assert result.exit_code == 0, result.output
    assert pool.num_died > 1
    failed = json.loads((workplace / "killed/failures.json").read_text()) if "failed" in result.output else []
    names = {each["prompt_id"] for each in failed}
    kept = [line for line in bytes_of(workplace / "one") if json.loads(line)["prompt_id"] not in names]
    assert [line for line in bytes_of(workplace / "killed") if json.loads(line)["prompt_id"] not in names] == kept


def test_lines_get_the_name_that_their_environment_has_when_they_arrive() -> None:
    made = cast(Record, {"prompt_id": "p", "turn": 0, "label": "x", "repeat": 0, "text": "Größe", "environment": "old"})
    decoded = Decoded([line_of(made)], "old", {})
    assert decoded.lines_in("old") == [line_of(made)]
    (line,) = decoded.lines_in("new")
    assert line == line_of(cast(Record, made | {"environment": "new"}))
    assert record_in(line) == made | {"environment": "new"}


@pytest.mark.slow
def test_an_evaluation_on_one_worker_is_timed_and_has_its_runs(workplace: Path, on_simulated: Any) -> None:
    result, pool = on_simulated(*TOY, "--output", "out", number=1)
    assert result.exit_code == 0, result.output
    assert "speed-up" in result.stdout
    assert "warning: Workers decoded: attainable speed-ups and the time split are left out." in result.stdout
    assert json.loads((workplace / "out/costs.json").read_text()) is None
    assert (workplace / "out/tokens.html").exists()
    assert [type(unit) for unit in pool.done] == [DecodeUnit] * 6 + [TokenViewUnit]
    assert len(comparison_runs()) == 1
    assert len(flat_runs()) == 5
    (environment,) = json.loads((workplace / "out/environments.json").read_text()).values()
    assert environment["worker"]["shares_device"] is False
    assert len(environment["worker"]["nodes"]) == 1


@pytest.mark.slow
def test_workers_that_share_a_device_time_nothing(workplace: Path, on_simulated: Any) -> None:
    result, _ = on_simulated(*TOY, "--output", "out", number=2)
    assert result.exit_code == 0, result.output
    assert "verdict: No speed is reported: several workers shared a device, so nothing was timed." in result.stdout
    assert "speed-up" not in result.stdout.splitlines()[0]
    assert "tok/s" not in result.stdout
    for run in flat_runs().values():
        assert not [key for key in run.data.metrics if key.startswith(("speed/", "batch/"))]
        assert "calls/target_per_token" in run.data.metrics
    page = (workplace / "out/report.html").read_text()
    assert "nothing was timed" in page
    assert "frontier" not in [path.stem for path in (workplace / "out/figures").iterdir()]


@pytest.mark.slow
def test_a_prompt_that_kills_its_workers_is_recorded_and_tried_again_by_a_resume(
    workplace: Path, on_simulated: Any
) -> None:
    assert evaluate(*TOY, "--output", "one").exit_code == 0
    result, pool = on_simulated(
        *TOY, "--output", "out", dies=lambda worker, unit: isinstance(unit, DecodeUnit) and unit.number == 2
    )
    assert result.exit_code == 0, result.output
    (failure,) = json.loads((workplace / "out/failures.json").read_text())
    assert failure["repeat"] == 0
    assert len(failure["deaths"]) == 3
    assert f"prompt '{failure['prompt_id']}' has failed: 3 workers died at it (worker" in result.stderr
    assert f"warning: 1 failed: workers died at {failure['prompt_id']} (failures.json)" in result.stdout
    assert pool.num_died == 3
    kept = [line for line in bytes_of(workplace / "one") if json.loads(line)["prompt_id"] != failure["prompt_id"]]
    assert bytes_of(workplace / "out") == kept
    result, pool = on_simulated(*TOY, "--output", "out", "--resume")
    assert result.exit_code == 0, result.output
    assert not (workplace / "out/failures.json").exists()
    assert sorted(bytes_of(workplace / "out")) == sorted(bytes_of(workplace / "one"))
    assert sum(isinstance(unit, DecodeUnit) for unit in pool.done) == 1


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_or_without_workers(
    workplace: Path, on_simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(*TOY, "--output", "one").exit_code == 0
    real, left = evaluation_run.RecordFile.append_line, iter(range(8))

    def dies(*arguments: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_run.RecordFile, "append_line", dies)
        result, _ = on_simulated(*TOY, "--output", "out")
    assert result.exit_code == 130
    assert bytes_of(workplace / "out") == bytes_of(workplace / "one")[:8]
    result, _ = on_simulated(*TOY, "--output", "out", "--resume", number=3)
    assert result.exit_code == 0, result.output
    assert bytes_of(workplace / "out") == bytes_of(workplace / "one")


@pytest.mark.slow
def test_drafts_that_adapt_have_one_workers_costs_on_all(workplace: Path, on_simulated: Any) -> None:
    auto = ("--experiment", "toy_quick", "--limit", "4", "--methods", "baseline,speculative", "--gamma", "auto")
    result, _ = on_simulated(*auto, "--output", "out")
    assert result.exit_code == 0, result.output
    costs = (workplace / "out/draft_costs.json").read_text()
    (workplace / "one").mkdir()
    assert evaluate(*auto, "--output", "first").exit_code == 0
    for name in ("config.json", "data.json", "draft_costs.json"):
        source = workplace / ("out" if name == "draft_costs.json" else "first") / name
        (workplace / "one" / name).write_bytes(source.read_bytes())
    assert evaluate(*auto, "--output", "one", "--resume").exit_code == 0
    assert (workplace / "one/draft_costs.json").read_text() == costs
    assert bytes_of(workplace / "one") == bytes_of(workplace / "out")


def test_what_workers_cannot_do_is_refused_before_any_starts(workplace: Path, on_simulated: Any) -> None:
    (workplace / "given.yaml").write_text("methods: [suffix]\nsuffix_memory: run\n")
    result = evaluate("--experiment", "arith_quick", "--config", "given.yaml", "--workers", "2")
    is_refused(result, "suffix_memory of suffix is run: its outputs follow those of all earlier prompts")
    (workplace / "given.yaml").write_text(
        "engine: {url: 'http://127.0.0.1:1/v1', model: x, methods: {a: {}}}\nmethods: ['engine:a']\n"
    )
    result = evaluate("--experiment", "arith_quick", "--config", "given.yaml", "--workers", "2")
    is_refused(result, "method 'engine:a' is a served engine, which has workers of its own; leave it or workers out.")
    assert not (workplace / "runs").exists()
