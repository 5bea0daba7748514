"""Program tasks through the commands: what runs, where, and what the run says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from helpers import human_eval, real_model
from helpers.cli_runner import comparison_runs, evaluate, flat_runs, records, runs
from helpers.mining_runs import collect
from helpers.reference_miner import mine_all
from specexp import config
from specexp.judge import collection
from specexp.judge.labels import LabelSet
from specexp.sandbox.job import ProgramOutcome, ProgramTest
from specexp.sandbox.sandbox import Sandbox
from specexp.tasks import arith_code

WHOLE = real_model.ROOT / ".real" / "whole"


@pytest.mark.slow
def test_an_evaluation_says_which_sandbox_ran(workplace: Path) -> None:
    """The embedded pair writes no programs: none of its answers is right."""
    human_eval.write(workplace / "rows.jsonl", human_eval.rows())
    result = evaluate(
        "--task", "humaneval", "--data", "rows.jsonl", "--execute", "sandbox", "--limit", "2", "--max-new-tokens", "40",
        "--methods", "baseline,speculative", "--gamma", "2", "--output", "out", "--show", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    protection = Sandbox().protection
    assert f"note: {protection.note()}" in result.stderr
    rows = records(workplace / "out")
    assert [row["gold"] for row in rows] == ["all tests pass"] * 4
    assert [row["correct"] for row in rows] == [False] * 4
    for run in (*flat_runs().values(), *comparison_runs()):
        assert run.data.tags["sandbox"] == protection.name
        assert run.data.tags["sandbox.processes"] == protection.processes
    for run in flat_runs().values():
        assert (run.data.params["execute"], run.data.params["sandbox"]) == ("sandbox", protection.name)


@pytest.mark.nightly
@pytest.mark.skipif(not WHOLE.is_dir(), reason="the model is not there: make real")
def test_a_real_model_is_mined_and_evaluated_on_twenty_problems(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2-135M, with its own weights rounded to nf4 as the draft: mined, checked by the literal procedure, run.

    Mining costs what its mismatches cost. The first third of the layers misses nearly all of these responses' tokens,
    and what the target makes of such tokens seldom ends; rounded weights miss few. The literal procedure keeps nothing
    from one token to the next and takes most of the test's time.
    """
    human_eval.write(workplace / "rows.jsonl", human_eval.rows())
    methods = ("baseline", "speculative", "topk")
    values = {
        "task": "humaneval", "data": "rows.jsonl", "execute": "sandbox", "limit": 20, "max_new_tokens": 120,
        "target": {"model": str(WHOLE), "chat_template": "own"},
        "draft": str(real_model.save_rounded(workplace / "rounded")),
        "methods": list(methods), "gamma": 3, "accept_k": 2,
    }  # fmt: skip
    (workplace / "real.yaml").write_text(yaml.safe_dump(values))
    executed: list[str] = []
    run_program = Sandbox.run

    def counted(sandbox: Sandbox, program: str, tests: Sequence[ProgramTest]) -> list[ProgramOutcome]:
        executed.append(program)
        return run_program(sandbox, program, tests)

    monkeypatch.setattr(Sandbox, "run", counted)
    result = collect("--config", "real.yaml", "--output", "labels")
    assert result.exit_code == 0, result.output
    labels = LabelSet.read(workplace / "labels")
    (run,) = runs()
    assert run.data.tags["sandbox"] == labels.manifest["sandbox"] == Sandbox().protection.name
    counts = labels.manifest["counts"]
    assert counts["num_mined"] + counts["num_no_answer"] + counts["num_unfinished"] == 20
    assert counts["num_mined"] >= 15
    assert counts["mining_target_calls"] < counts["slow_target_calls"]
    assert {label.important for label in labels.labels} >= {True, False}
    swaps = [x for x in labels.labels if x.answer_after is not None and x.answer_after != x.answer_before]
    compared = {(x.prompt_id, text) for x in swaps for text in (x.answer_before, x.answer_after)}
    assert len(executed) == len(compared) > 20  # each text once, and those that are the answer before not at all

    prepared = collection.prepare(config.resolve_mining("arith_quick", {"config": "real.yaml"}))
    assert len(prepared.examples) == 20
    slow = mine_all(prepared.pair, prepared.task, 120, prepared.examples, features=False)
    expected = {(x["prompt_id"], x["position"], x["draft_token"]): x["important"] for one in slow for x in one.labels}
    mined = {(x.prompt_id, x.position, x.draft_token): x.important for x in labels.labels}
    assert mined == expected
    assert {True, False} <= set(expected.values())

    executed.clear()
    result = evaluate("--config", "real.yaml", "--output", "out", "--show", "0")
    assert result.exit_code == 0, result.output
    rows = records(workplace / "out")
    by_method = {m: {r["prompt_id"]: r for r in rows if r["method"] == m} for m in methods}
    assert {len(by_prompt) for by_prompt in by_method.values()} == {20}
    assert len(rows) == 60
    plain = {name: row["text"] for name, row in by_method["baseline"].items()}
    assert {name: row["text"] for name, row in by_method["speculative"].items()} == plain
    assert 0 < sum(row["correct"] for row in by_method["baseline"].values()) < 20
    assert len(executed) == len({(row["prompt_id"], row["answer"]) for row in rows if row["answer"] is not None})


@pytest.mark.slow
def test_small_functions_are_mined_and_evaluated_with_any_pair(workplace: Path) -> None:
    """The embedded pair was trained on word problems; the commands and the counts are what this is about."""
    result = evaluate(
        "--task", "arith_code", "--execute", "sandbox", "--limit", "2", "--methods", "baseline",
        "--max-new-tokens", "30", "--output", "out", "--show", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = [f"arith_code-test-{problem.index}" for problem in arith_code.distinct("test", 2)]
    assert [row["prompt_id"] for row in records(workplace / "out")] == names
    data = json.loads((workplace / "out" / "data.json").read_text())
    assert data["source"] == "specexp.tasks.arith_code split test"
