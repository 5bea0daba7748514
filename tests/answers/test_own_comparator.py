"""A comparator of one's own decides what is correct in an evaluation, and what is important in mining."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from entrypoints import main
from entrypoints.collect_labels import command as collect_labels
from helpers.cli_runner import evaluate, flat_runs, invoke, records
from specexp import config
from specexp.errors import ConfigError
from specexp.judge.labels import LabelSet

TOY = ["--experiment", "toy_quick", "--task", "prompts", "--data", "own.jsonl", "--comparator", "own_rule:longer"]


@pytest.fixture
def rows(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "own_rule", raising=False)
    (workplace / "own_rule.py").write_text("def longer(answer, gold):\n    return len(answer) >= len(gold)\n")
    lines = [{"prompt": str(number), "answer": "1" * (4 * number)} for number in range(1, 13)]
    (workplace / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_function_of_ones_own_grades_and_labels(workplace: Path, rows: None) -> None:
    result = evaluate(*TOY, "--methods", "baseline", "--max-new-tokens", "40", "--output", "out")
    assert result.exit_code == 0, result.output
    written = records(workplace / "out")
    for record in written:
        assert record["answer"] == ((record["text"] or None) if record["finish_reason"] == "stop" else None)
        assert record["correct"] == (record["answer"] is not None and len(record["answer"]) >= len(record["gold"]))
    assert {record["correct"] for record in written} == {True, False}
    assert flat_runs()["baseline"].data.params["comparator"] == "own_rule:longer"

    mined = invoke(collect_labels, *TOY, "--limit", "12", "--max-new-tokens", "40", "--output", "labels")
    assert mined.exit_code == 0, mined.output
    labels = LabelSet.read(workplace / "labels")
    assert labels.manifest["comparator"] == "own_rule:longer"
    decided = [label for label in labels.labels if label.important is not None]
    for label in decided:
        longer = label.answer_after is not None and len(label.answer_after) >= len(label.answer_before)
        assert label.important == (not longer)
    assert any(label.important is False and label.answer_after != label.answer_before for label in decided)


def test_every_command_reads_the_rows_as_the_comparator_says(workplace: Path) -> None:
    """A list is a gold answer of `numbers` alone."""
    lines = [{"prompt": str(number), "answer": [number, 2 * number], "id": f"p{number}"} for number in range(1, 9)]
    (workplace / "sets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"task": "prompts", "data": "sets.jsonl", "comparator": "numbers"}
    resolved = config.resolve("toy_quick", given)
    main._check("p3", resolved)
    with pytest.raises(ConfigError, match="p11"):
        main._check("p11", resolved)
    assert resolved.read_task("train").examples(3)[2].answer == "3, 6"
    long = config.resolve("toy_quick", {"task": "long_prompts"})
    longer = replace(long, prompt_tokens=2 * long.prompt_tokens)
    sizes = [len(each.read_task("train").examples(1)[0].turns[0]) for each in (long, longer)]
    assert sizes[1] > 1.9 * sizes[0]


def test_a_function_that_is_not_there_is_refused_before_a_model_is_loaded(
    workplace: Path, rows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "own_rule.py").unlink()
    monkeypatch.setattr("specexp.evaluation.preparation.load_pair", lambda *_, **__: pytest.fail("a model is loaded"))
    result = evaluate(*TOY, "--methods", "baseline", "--output", "out")
    assert result.exit_code == 2
    assert "comparator 'own_rule:longer': module 'own_rule' cannot be imported (ModuleNotFoundError" in result.output
