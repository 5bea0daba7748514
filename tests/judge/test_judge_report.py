"""judge_report: from mined labels to a page with cases in their context; and a judge on another task of its pair."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from entrypoints import judge_report, train_judge
from helpers.cli_runner import evaluate, invoke, runs
from helpers.judges import judge_for, label_set
from helpers.mining_runs import collect
from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.judge import features
from specexp.judge.judge import Judge
from specexp.judge.labels import LabelSet
from specexp.judge_report import cases
from specexp.rule_calibration import replay


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--batch", "0"], "batch is '0'; it must be a whole number >= 1"),
        (["--judge", "nowhere"], "judge 'nowhere' does not exist; give a folder"),
        (
            ["--judge", "judge"],
            "judge 'judge' is for another target and draft and tokenizer than the labels; give labels",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(workplace: Path, arguments: list[str], message: str) -> None:
    label_set(workplace / "labels")
    judge_for("toy_quick", features.mode("target")).save(workplace / "judge")
    result = invoke(judge_report.command, "--labels", "labels", "--output", "out", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (workplace / "out").exists()


@pytest.mark.nightly
def test_a_judge_is_reported_and_used_on_another_task(workplace: Path) -> None:
    assert collect("--limit", "40", "--output", "labels").exit_code == 0
    trained = invoke(
        train_judge.command,
        "--labels",
        "labels",
        "--features",
        "target_scalars",
        "--kinds",
        "trees",
        "--output",
        "judge",
    )
    assert trained.exit_code == 0, trained.output
    result = invoke(judge_report.command, "--labels", "labels", "--output", "report")
    assert result.exit_code == 0, result.output
    (run,) = [run for run in runs() if run.data.tags["method"] == "judge_report"]
    files = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert files == {"judge_report.html", "reliability.png", "token_kinds.csv"}
    labels, judge = LabelSet.read(workplace / "labels"), Judge.load(workplace / "judge")
    rows = labels.select(features.mode("target_scalars"), "test")[2]
    assert run.data.metrics["judge/ece_low"] <= run.data.metrics["judge/ece_high"]
    table = list(csv.DictReader(io.StringIO((workplace / "report" / "token_kinds.csv").read_text())))
    assert sum(int(row["mismatches"]) for row in table) == len(rows)
    page = (workplace / "report" / "judge_report.html").read_text()
    assert page.count('class="case') == min(40, len(rows)) or page.count('class="case') > 20
    check_contexts_are_the_texts(labels)

    Judge(judge.network, replace(judge.facts, task="gsm8k")).save(workplace / "other")
    arguments = ["--methods", "baseline,autojudge", "--limit", "4", "--judge", "other", "--output", "out"]
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "(transfer)" in line]
    assert "was mined on task 'gsm8k' and decodes task 'arith' (transfer); its threshold was calibrated there." in line
    assert "plain decoding " in line
    assert line.count(" (95 %: ") >= 1
    assert {run.data.tags["judge_task"] for run in runs() if run.data.tags.get("transfer") == "true"} == {"gsm8k"}


def check_contexts_are_the_texts(labels: LabelSet) -> None:
    """At the first mismatch of a prompt, the text is that of plain decoding."""
    mining = replay.prepared(labels, 4)
    first = {label.prompt_id: label for label in reversed(labels.labels) if label.split == "test"}
    shown = [label for label in first.values() if label.important is not None]
    assert len(shown) > 2
    zeros = [0.0] * len(shown)
    found = cases.cases(mining, labels.labels, shown, zeros, [True] * len(shown), lambda: None)
    engine, text = Engine(mining.pair.models, mining.pair.eos_ids), mining.pair.text
    prompts = {each.prompt_id: text.encode(each.messages()) for each in mining.examples}
    for case in found:
        prompt, at = prompts[case.label.prompt_id], case.label.position
        out = engine.generate(Baseline(Warp()), prompt, 200, CertainRng()).token_ids
        assert out[at] == case.label.target_token
        assert case.context.before == text.decode([*prompt, *out[:at]])[-cases.BEFORE :]
        assert case.context.after == text.decode(out[at + 1 :])[: cases.AFTER]
