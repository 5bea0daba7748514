"""evaluate --batch: the records of batch 1, an honest label on its speed, and whole records after a kill."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runner import comparison_runs, evaluate, flat_runs, interrupts, records, refused, without_clocks
from helpers.processes import finish, start, wait_for_lines
from specexp.engine import engine
from specexp.evaluation import runner, scheduling
from specexp.evaluation.report.table import terminal

DATA = Path(__file__).resolve().parents[1] / "data"
METHODS = "baseline,draft_only,speculative,lookup,topk,specexec"
SMALL = ["--limit", "7", "--max-new-tokens", "40", "--methods", METHODS, "--gamma", "3"]
TURNS = ["--task", "mtbench", "--data", str(DATA / "mtbench.jsonl"), "--limit", "5", "--max-new-tokens", "12",
         "--gamma", "3"]  # fmt: skip


def contents(folder: Path) -> list[dict[str, Any]]:
    """Records without clocks and the settings' name; an overlap is a sum of floats."""
    rows = without_clocks(records(folder))
    return [{k: round(v, 3) if k == "overlap" else v for k, v in r.items() if k != "settings_hash"} for r in rows]


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_a_batch_records_what_batch_1_records(workplace: Path, temperature: str) -> None:
    for batch in ("1", "3"):
        result = evaluate(*SMALL, "--temperature", temperature, "--batch", batch, "--output", batch)
        assert result.exit_code == 0, result.output
    assert len(contents(workplace / "3")) == 7 * 6
    assert contents(workplace / "3") == contents(workplace / "1")
    hashes = {json.loads((workplace / batch / "config.json").read_text())["settings_hash"] for batch in "13"}
    assert len(hashes) == 2, "a batch is part of the configuration"


@pytest.mark.at_most(slow=1)
@pytest.mark.nightly
@pytest.mark.parametrize("history", ["baseline", "own"])
def test_second_turns_go_on_behind_first_ones_in_a_batch_too(workplace: Path, history: str) -> None:
    for batch in ("1", "2"):
        assert evaluate(*TURNS, "--history", history, "--batch", batch, "--output", batch).exit_code == 0
    assert len(contents(workplace / "2")) == 5 * 2 * 3
    assert contents(workplace / "2") == contents(workplace / "1")


@pytest.mark.slow
def test_its_speed_is_labelled_and_no_prompts_latency_is_claimed(workplace: Path) -> None:
    result = evaluate(*SMALL, "--batch", "4", "--output", "out")
    assert result.exit_code == 0, result.output
    assert "tok/s, batch 4" in result.output
    assert "speed-up" not in result.output
    for name, run in flat_runs().items():
        metrics = run.data.metrics
        assert not [key for key in metrics if key.startswith("speed/")], name
        assert {"batch/prompts_per_second", "batch/tokens_per_second", "batch/speedup"} <= metrics.keys()
        assert {"quality/accuracy", "quality/equal_to_baseline"} <= metrics.keys()
        assert (run.data.tags["batch"], run.data.params["batch"]) == ("4", "4")
    assert {"accept/alpha", "accept/mean_length"} <= flat_runs()["speculative_k3"].data.metrics.keys()
    (comparison,) = comparison_runs()
    assert comparison.data.tags["batch"] == "4"
    assert "speed/best_lossless_speedup" not in comparison.data.metrics
    method_records = [r for r in records(workplace / "out") if r["label"] == "speculative_k3"]
    seconds = sum(r["seconds"] + r["prefill_seconds"] for r in method_records)
    rate = flat_runs()["speculative_k3"].data.metrics["batch/prompts_per_second"]
    assert rate == pytest.approx(7 / seconds)


@pytest.mark.slow
def test_batch_1_keeps_its_names(workplace: Path) -> None:
    assert evaluate(*SMALL[:-2], "--limit", "2", "--output", "out").exit_code == 0
    for run in flat_runs().values():
        assert not [key for key in run.data.metrics if key.startswith("batch/")]
        assert {"speed/tokens_per_second", "speed/speedup"} <= run.data.metrics.keys()
        assert run.data.tags["batch"] == "1"


def test_a_table_has_speeds_of_one_kind() -> None:
    both = {"a": {"speed/tokens_per_second": 9.0, "batch/tokens_per_second": 70.0}}
    assert [line.split() for line in terminal(both, True).splitlines()] == [["tok/s"], ["a", "9"]]
    assert [line.split() for line in terminal(both, True, 8).splitlines()] == [["tok/s,", "batch", "8"], ["a", "70"]]


@pytest.mark.slow
def test_categories_have_no_speed_in_a_batch(workplace: Path) -> None:
    arguments = ["--task", "spec_bench", "--data", str(DATA / "spec_bench.jsonl"), "--limit", "5", *TURNS[6:]]
    assert evaluate(*arguments, "--batch", "2", "--output", "out").exit_code == 0
    metrics = flat_runs()["speculative_k3"].data.metrics
    assert any(name.startswith("category/mean_length_") for name in metrics)
    assert not any(name.startswith("category/speedup_") for name in metrics)


@pytest.mark.slow
def test_settings_take_turns_batches_at_a_time(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is first changes from one group of batches to the next."""
    monkeypatch.setattr(scheduling, "BATCHES", 1)
    assert evaluate(*SMALL[:4], "--methods", "baseline,speculative", "--batch", "3", "--output", "out").exit_code == 0
    labels = [record["label"] for record in records(workplace / "out")]
    assert labels == ["baseline"] * 3 + ["speculative"] * 6 + ["baseline"] * 3 + ["baseline"] + ["speculative"]


def test_prompts_are_decoded_together(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = engine.score

    def score(model: Any, asked: Any, transfer: Any) -> Any:
        seen.append(len(asked))
        return real(model, asked, transfer)

    monkeypatch.setattr(engine, "score", score)
    assert (
        evaluate(*SMALL[:4], "--methods", "baseline", "--batch", "4", "--show", "0", "--output", "out").exit_code == 0
    )
    assert max(seen) == 4
    assert sum(seen) / len(seen) > 2.5


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [SMALL, TURNS], ids=["one turn", "two turns"])
def test_an_interrupted_batch_goes_on_and_ends_as_if_nothing_had_happened(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    assert evaluate(*arguments, "--batch", "3", "--output", "whole").exit_code == 0
    for count in (2, 5, 11):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "check_identities", interrupts(count))
            assert evaluate(*arguments, "--batch", "3", "--output", "out", "--resume").exit_code == 130
    assert len(records(workplace / "out")) == 2 + 5 + 11
    assert evaluate(*arguments, "--batch", "3", "--output", "out", "--resume").exit_code == 0
    assert without_clocks(records(workplace / "out")) == without_clocks(records(workplace / "whole"))


@pytest.mark.nightly
def test_kill_9_in_a_batch_loses_and_repeats_nothing(workplace: Path) -> None:
    finish(start("whole", "--batch", "4"))
    rng = random.Random(0)
    for count in (1, 4, 8):
        process = start("out", "--resume", "--batch", "4")
        wait_for_lines(workplace / "out" / "records.jsonl", count, process)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start("out", "--resume", "--batch", "4"))
    assert without_clocks(records(workplace / "out")) == without_clocks(records(workplace / "whole"))


def test_memory_that_runs_out_names_a_lower_batch(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def out(*_: Any) -> Any:
        raise OutOfMemoryError("no 3 GiB left")

    monkeypatch.setattr(runner, "warm_up", lambda *_, **more: None)
    monkeypatch.setattr(engine, "score", out)
    result = evaluate(*SMALL[:4], "--methods", "baseline", "--batch", "3", "--output", "out")
    assert result.exit_code == 2
    assert "prompts 'arith-test-" in result.output
    assert "3 at a time, with baseline: no 3 GiB left Lower batch, max_new_tokens" in result.output


@pytest.mark.parametrize("value", ["0", "-4", "many", "1.5"])
def test_a_batch_that_is_no_whole_number_is_refused(workplace: Path, value: str) -> None:
    result = evaluate("--batch", value, "--output", "out")
    refused(result, f"batch is '{value}'; it must be a whole number >= 1.", workplace)
