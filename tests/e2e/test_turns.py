"""Conversations of two turns: what the second one goes on behind, after a kill too, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from helpers.cli_runner import comparison_runs, evaluate, flat_runs, interrupts, records, refused, runs, without_clocks
from specexp.evaluation import runner
from specexp.pair import tokenization

DATA = Path(__file__).resolve().parents[1] / "data"
QUICK = ["--task", "mtbench", "--data", str(DATA / "mtbench.jsonl"), "--limit", "5", "--max-new-tokens", "12",
         "--gamma", "3", "--output", "out"]  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The contents of every conversation that was encoded."""
    prompts: list[list[str]] = []
    real = tokenization.TokenizerText.encode

    def encode(self: Any, messages: Any) -> list[int]:
        prompts.append([message["content"] for message in messages])
        return real(self, messages)

    monkeypatch.setattr(tokenization.TokenizerText, "encode", encode)
    return prompts


@pytest.mark.slow
def test_second_turns_go_on_behind_the_baselines_answer_for_every_method(
    workplace: Path, asked: list[list[str]]
) -> None:
    assert evaluate(*QUICK, "--show", "0").exit_code == 0  # showing decodes again
    by_key = {(r["prompt_id"], r["turn"], r["label"]): r for r in records(workplace / "out")}
    assert len(by_key) == 5 * 2 * 3
    second = [messages for messages in asked if len(messages) == 3 and messages[1] != "-"]
    assert len(second) == 15
    replies = {by_key[f"mtbench-{i}", 0, "baseline"]["text"] for i in range(81, 86)}
    assert {messages[1] for messages in second} == replies
    for (prompt, turn, label), record in by_key.items():
        assert record["paired"] is True
        if label != "draft_only":
            assert record["token_ids"] == by_key[prompt, turn, "baseline"]["token_ids"]
    assert by_key["mtbench-81", 0, "draft_only"]["text"] != by_key["mtbench-81", 0, "baseline"]["text"]
    assert all("paired" not in run.data.tags for run in flat_runs().values())


@pytest.mark.slow
def test_a_history_of_its_own_is_a_setting_and_says_so(workplace: Path, asked: list[list[str]]) -> None:
    assert evaluate(*QUICK, "--history", "own").exit_code == 0
    by_key = {(r["prompt_id"], r["turn"], r["label"]): r for r in records(workplace / "out")}
    second = {(m[0], m[1]) for m in asked if len(m) == 3 and m[1] != "-"}
    own = {by_key[f"mtbench-{i}", 0, label]["text"] for i in range(81, 86) for label in ("baseline", "draft_only")}
    assert {reply for _, reply in second} == own
    assert {r["paired"] for key, r in by_key.items() if key[1] == 1} == {False}
    for run in flat_runs().values():
        assert run.data.tags["paired"] == "false"
    assert flat_runs()["draft_only"].data.metrics["quality/equal_to_baseline"] < 1.0
    assert evaluate(*QUICK[:-1], "alone", "--history", "own", "--methods", "speculative").exit_code == 0


@pytest.mark.slow
def test_a_conversation_goes_on_after_an_interruption(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(*QUICK[:-1], "whole").exit_code == 0
    for count in (4, 7):  # between the turns of the first conversation, and inside those of the second
        with monkeypatch.context() as patch:
            patch.setattr(runner, "check_identities", interrupts(count))
            assert evaluate(*QUICK, "--resume").exit_code == 130
    assert evaluate(*QUICK, "--resume").exit_code == 0
    assert without_clocks(records(workplace / "out")) == without_clocks(records(workplace / "whole"))


@pytest.mark.slow
def test_the_file_is_an_input_of_every_run_with_its_hash(workplace: Path) -> None:
    assert evaluate(*QUICK).exit_code == 0
    written = json.loads((workplace / "out" / "data.json").read_text())
    assert written["num_rows"] == 5
    for run in [*flat_runs().values(), *comparison_runs()]:
        (one,) = MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
        assert one.dataset.name == "mtbench"
        assert written["digest"].startswith(one.dataset.digest)
        assert json.loads(one.dataset.source)["sha256"] == written["digest"]


@pytest.mark.slow
def test_a_folder_begun_on_other_rows_is_refused(workplace: Path) -> None:
    data = workplace / "mine.jsonl"
    data.write_text((DATA / "mtbench.jsonl").read_text())
    arguments = ["--task", "mtbench", "--data", "mine.jsonl", *QUICK[4:]]
    assert evaluate(*arguments).exit_code == 0
    before, num_runs = (workplace / "out" / "records.jsonl").read_bytes(), len(runs())
    data.write_text(data.read_text().replace("sea", "see"))
    again = evaluate(*arguments, "--resume")
    assert again.exit_code == 2
    assert "'out' was begun on other rows" in again.output
    assert (workplace / "out" / "records.jsonl").read_bytes() == before
    assert len(runs()) == num_runs


def test_turns_that_cannot_fit_are_refused_before_anything_is_written(workplace: Path) -> None:
    result = evaluate(*QUICK, "--max-new-tokens", "5000")
    refused(result, "prompt 'mtbench-81': its 2 turns have", workplace)
    assert "lower max_new_tokens" in result.output


@pytest.mark.slow
def test_a_categorys_name_may_be_anything(workplace: Path) -> None:
    rows = (DATA / "spec_bench.jsonl").read_text().replace('"rag"', '"Q&A/é"')
    (workplace / "mine.jsonl").write_text(rows)
    arguments = ["--task", "spec_bench", "--data", "mine.jsonl", "--limit", "5", *QUICK[6:]]
    result = evaluate(*arguments, "--methods", "baseline,speculative")
    assert result.exit_code == 0, result.output
    assert any(name.startswith("category/speedup_Q_A") for name in flat_runs()["speculative_k3"].data.metrics)


@pytest.mark.slow
def test_speed_and_tokens_per_call_come_by_category(workplace: Path) -> None:
    arguments = ["--task", "spec_bench", "--data", str(DATA / "spec_bench.jsonl"), "--limit", "5", *QUICK[6:]]
    assert evaluate(*arguments).exit_code == 0
    metrics = flat_runs()["speculative_k3"].data.metrics
    rows = [r for r in records(workplace / "out") if r["label"] == "speculative_k3" and r["category"] == "writing"]
    assert len(rows) == 2
    expected = sum(len(r["token_ids"]) for r in rows) / sum(r["num_rounds"] for r in rows)
    assert metrics["category/mean_length_writing"] == pytest.approx(expected)
    assert {f"category/speedup_{c}" for c in ("writing", "translation", "rag")} <= metrics.keys()
    assert "category/mean_length_writing" not in flat_runs()["draft_only"].data.metrics
    assert metrics["quality/accuracy"] in (0.0, 1.0), "of the one question that can be checked"
