"""Answers of one's own prompts through the commands, and what was mined with another version of the answer rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import specexp
from entrypoints.collect_labels import command as collect_labels
from entrypoints.train_judge import command as train_judge
from helpers.cli_runner import evaluate, flat_runs, invoke, records
from helpers.judges import judge_for, label_set
from specexp.answers import rules as answers
from specexp.judge import collection, features, trained_judge
from specexp.judge.judge import FACTS, Judge
from specexp.judge.labels import LabelSet

OLDER = f"version 1 (none is recorded) of the answer rule, and this is version {answers.VERSION}"
TOY = ["--experiment", "toy_quick", "--task", "prompts", "--data", "mine.jsonl"]


def own_rows(workplace: Path, *rows: dict[str, Any]) -> None:
    (workplace / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(path: Path, **more: Any) -> None:
    """Write keys of a JSON file anew; None takes one away."""
    content = {**json.loads(path.read_text()), **more}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_answers_are_read_by_the_setting_and_those_that_cannot_be_are_counted(workplace: Path) -> None:
    own_rows(workplace, {"prompt": "1", "answer": 5}, {"prompt": "2", "answer": 5}, {"prompt": "3", "note": "x"})
    asked = [*TOY, "--methods", "baseline", "--max-new-tokens", "9"]
    result = evaluate(*asked, "--answer-pattern", r"\d+ (\d+)", "--output", "out")
    assert result.exit_code == 0, result.output
    assert "note: data 'mine.jsonl': columns 'note' are not used." in result.output
    written = records(workplace / "out")
    for record in written:
        words = record["text"].split()
        pairs = list(zip(words[::2], words[1::2], strict=False))
        ended = record["finish_reason"] == "stop" or len(words) % 2 or not pairs
        if ended:
            assert record["answer"] == (pairs[-1][1] if pairs else None)
    run = flat_runs()["baseline"].data
    assert run.metrics["count/without_answer"] == sum(r["answer"] is None for r in written if r["gold"] is not None)
    assert run.params["answer_pattern"] == r"\d+ (\d+)"
    unread = evaluate(*asked, "--answer-pattern", "never", "--output", "none")
    assert (
        "baseline: 100 % of the graded outputs hold no answer that could be read (answer_rule is pattern;"
        in unread.output
    )
    assert all(r["answer"] is None and r["correct"] in (False, None) for r in records(workplace / "none"))


def test_records_of_two_versions_are_not_mixed(workplace: Path) -> None:
    own_rows(workplace, {"prompt": "1", "answer": 5})
    asked = [*TOY, "--methods", "baseline", "--max-new-tokens", "4", "--output", "out"]
    assert evaluate(*asked).exit_code == 0
    change(workplace / "out" / "data.json", answer_version=None)
    again = evaluate(*asked, "--resume")
    assert again.exit_code == 2
    assert f"'out' was begun with {OLDER}; name another output folder." in again.output


def test_labels_of_two_versions_are_not_mixed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_rows(workplace, *({"prompt": str(number)} for number in range(12)))
    asked = [*TOY, "--answer-pattern", r"\d+", "--limit", "12", "--max-new-tokens", "40", "--output", "out"]

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collection, "_write", dies)
        assert invoke(collect_labels, *asked).exit_code == 130
    change(workplace / "out" / "inputs.json", answer_version=None)
    again = invoke(collect_labels, *asked, "--resume")
    assert again.exit_code == 2
    assert f"error: 'out' was begun with {OLDER}; labels of two versions are not mixed" in again.output
    change(workplace / "out" / "inputs.json", answer_version=answers.VERSION)
    assert invoke(collect_labels, *asked, "--resume").exit_code == 0
    assert LabelSet.read(workplace / "out").manifest["answer_version"] == answers.VERSION

    # What is finished is one version's, and stays.
    for name in ("inputs.json", "manifest.json"):
        change(workplace / "out" / name, answer_version=None)
    before = (workplace / "out" / "manifest.json").read_bytes()
    done = invoke(collect_labels, *asked, "--resume")
    assert done.exit_code == 0, done.output
    assert f"note: label set 'out' was mined with {OLDER}" in done.output
    assert (workplace / "out" / "manifest.json").read_bytes() == before


def test_a_judge_carries_the_version_of_its_labels(tmp_path: Path) -> None:
    mode = features.mode("target")
    for version in (answers.VERSION, None):
        label_set(tmp_path / "labels")
        change(tmp_path / "labels" / "manifest.json", answer_version=version)
        trained = trained_judge.train(
            "logistic", LabelSet.read(tmp_path / "labels"), mode, 0.9, 0, lambda metrics, step: None
        )
        trained.judge.save(tmp_path / "judge")
        assert Judge.load(tmp_path / "judge").facts.answer_version == (version or answers.UNRECORDED)


@pytest.mark.slow
def test_a_registered_judge_carries_the_version_and_older_labels_are_noted(workplace: Path) -> None:
    label_set(workplace / "labels")
    asked = ["--labels", "labels", "--kinds", "logistic", "--features", "target"]
    trained = invoke(train_judge, *asked, "--output", "judge")
    assert trained.exit_code == 0, trained.output
    assert "note:" not in trained.output
    import mlflow

    version = mlflow.MlflowClient().get_model_version("autojudge", "1")
    assert version.tags["answer_version"] == str(answers.VERSION)
    assert mlflow.models.get_model_info("models:/autojudge/1").metadata["answer_version"] == answers.VERSION
    change(workplace / "labels" / "manifest.json", answer_version=None)
    old = invoke(train_judge, *asked, "--output", "old", "--name", "old")
    assert old.exit_code == 0, old.output
    assert f"note: label set 'labels' was mined with {OLDER}" in old.output


NEWER = f"version 7 of the answer rule, and this is version {answers.VERSION}"


@pytest.mark.parametrize("recorded,words", [(None, OLDER), (7, NEWER), (answers.VERSION, "")])
def test_a_judge_of_another_version_decodes_with_a_note(tmp_path: Path, recorded: int | None, words: str) -> None:
    judge_for("toy_quick", features.mode("target")).save(tmp_path)
    change(tmp_path / FACTS, answer_version=recorded)
    pair = specexp.load("toy_quick", judge=str(tmp_path), methods="autojudge")
    assert pair.generate("1 2 3", "autojudge", max_new_tokens=8).token_ids
    noted = [note for note in pair.notes if note.startswith("the judge")]
    assert [note.split(":")[0] for note in noted] == ([f"the judge was mined with {words}"] if words else [])
