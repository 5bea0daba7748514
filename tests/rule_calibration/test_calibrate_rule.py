"""calibrate_rule: scores turn where the rules do, dials keep the wanted loss, and mined texts are decoded again."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from mlflow.tracking import MlflowClient

from entrypoints import calibrate_rule, train_judge
from helpers.cli_runner import invoke, runs
from helpers.judges import label_set
from helpers.mining_runs import collect
from specexp.decoding.chain import Chain, DraftModel
from specexp.decoding.lossy_rules import TopK
from specexp.decoding.protocol import Drafted, Scored
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.untrained_rules import DISTANCES, EntropyGate, FLy, Fuzzy, Typical
from specexp.engine import Engine
from specexp.judge.labels import LabelSet
from specexp.rule_calibration import curves, replay
from specexp.rule_calibration.choice import Scores, bound_for, calibrated
from specexp.rule_calibration.dials import DIALS, Dial, MismatchPlace
from specexp.storage.journal import Journal

K, WINDOW, GREEDY = 3, 2, Warp()
# From a dial's value to the rule.
RULES: dict[str, Callable[[float], Any]] = {
    "typical": lambda value: Typical(value, math.sqrt(value), GREEDY),
    "entropy": lambda value: EntropyGate(value, GREEDY),
    "fly": lambda value: FLy(value, WINDOW, (), GREEDY),
    **{f"fuzzy_{name}": lambda value, name=name: Fuzzy(name, value, GREEDY) for name in DISTANCES},
    "relaxed": lambda value: TopK(K, value, GREEDY),
}


def calibrate(*arguments: str) -> Result:
    return invoke(calibrate_rule.command, *arguments)


def test_every_dial_has_its_rule() -> None:
    assert RULES.keys() == DIALS.keys()


@pytest.mark.parametrize("name", DIALS)
def test_a_score_is_where_the_rule_turns(name: str) -> None:
    numbers, dial, turned = np.random.default_rng(4), DIALS[name], 0
    for _ in range(60):
        logits = 2 * numbers.normal(size=(WINDOW + 2, 7))
        q = numbers.dirichlet(np.ones(7), size=1)
        choices = logits.argmax(axis=-1)
        token, agrees = int(numbers.integers(7)), bool(numbers.integers(2))
        tokens = np.array([token, *choices[1 : WINDOW + 1]])
        tokens[-1] = (tokens[-1] + (not agrees)) % 7
        score = dial.score(MismatchPlace(Warp(1.0)(logits[:1]), q, token, agrees), K)
        drafted, scored = Drafted(tokens, np.repeat(q, WINDOW + 1, axis=0)), Scored(logits)
        value = abs(score) if math.isfinite(score) else 0.5
        for factor in (0.999, 1.001, 0.5, 2.0):
            at = value * factor
            if not min(dial.lossless, dial.loosest) < at < max(dial.lossless, dial.loosest):
                continue
            assert bool(RULES[name](at).accept_anyway(drafted, scored)[0]) == (score < dial.bound(at))
            turned += math.isfinite(score)
    assert turned > 60


def made_up(num_prompts: int, seed: int = 0) -> Scores:
    numbers = np.random.default_rng(seed)
    important = numbers.random(4 * num_prompts) < 0.3
    scores = 0.4 * important + 0.6 * numbers.random(4 * num_prompts)
    return Scores(scores, important, [f"p{i // 4}" for i in range(4 * num_prompts)])


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.5])
def test_a_bound_loses_at_most_what_is_wanted_and_no_looser_one_does(loss: float) -> None:
    split, dial = made_up(200), Dial("x", "x", 0.0, 1.0, lambda place, k: 0.0)
    bound = bound_for(loss, split, dial)
    assert split.loss(bound) <= loss
    looser = min(score for score in split.scores[split.important] if score >= bound)
    assert split.loss(np.nextafter(looser, 2)) > loss
    lost = {prompt for score, important, prompt in zip(split.scores, split.important, split.prompts, strict=True)
            if important and score < bound}  # fmt: skip
    assert split.loss(bound) == pytest.approx(len(lost) / 200)


def test_the_ends_of_a_dial() -> None:
    falling = Dial("x", "accept_entropy", 1.0, 0.0, lambda place, k: 0.0)
    unimportant = Scores(np.array([-0.5, -0.2]), np.array([False, False]), ["a", "b"])
    assert falling.value(bound_for(0.0, unimportant, falling)) == 0.0, "nothing can be lost"
    first = Scores(np.array([-0.9, -0.2]), np.array([True, False]), ["a", "b"])
    assert falling.value(bound_for(0.0, first, falling)) == 1.0, "the first to be accepted is important"
    assert falling.value(bound_for(0.5, first, falling)) == 0.0
    between = Scores(np.array([-0.9, -0.2]), np.array([False, True]), ["a", "b"])
    assert falling.value(bound_for(0.0, between, falling)) == pytest.approx(0.55), "the middle of the gap"
    never = Scores(np.array([math.inf, -0.2]), np.array([True, False]), ["a", "b"])
    assert falling.value(bound_for(0.0, never, falling)) == 0.0


def test_metrics_and_curve_are_those_of_the_test_split() -> None:
    dial = Dial("x", "x", 0.0, 1.0, lambda place, k: 0.0)
    each = calibrated("x", dial, 0.05, made_up(200), made_up(150, 1))
    metrics, test = each.metrics(), each.test
    accepted = test.scores < each.value
    assert metrics["judge/recall"] == pytest.approx(1 - accepted[test.important].mean())
    assert metrics["judge/accepted"] == pytest.approx(accepted.mean())
    assert metrics["judge/calibration_loss"] <= 0.05
    assert metrics["judge/loss"] < metrics["judge/loss_high"]
    x, y = curves.points(each)
    assert (x[0], y[0], x[-1], y[-1]) == (0.0, 1.0, 1.0, 0.0)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) <= 0).all()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--rules", "typical,flow"], "unknown rule 'flow', did you mean 'fly'?"),
        (["--loss", "1"], "loss is '1'; it must be a number in [0, 1)."),
        (["--window", "0"], "window is '0'; it must be a whole number >= 1."),
        (["--judge", "nowhere"], "judge 'nowhere' does not exist; give a folder"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    workplace: Path, unloaded: None, arguments: list[str], message: str
) -> None:
    label_set(workplace / "labels")
    result = calibrate("--labels", "labels", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_labels_whose_settings_are_not_whole_are_refused(workplace: Path, unloaded: None) -> None:
    label_set(workplace / "labels")
    result = calibrate("--labels", "labels", "--judge", "none", "--output", "out")
    assert result.exit_code == 2
    assert "the labels' settings cannot be read ('target'); mine them again." in result.output
    assert not (workplace / "out").exists()


@pytest.mark.slow
def test_rules_and_a_judge_are_set_on_mined_labels_and_logged(workplace: Path) -> None:
    assert collect("--limit", "40", "--output", "labels").exit_code == 0
    trained = invoke(train_judge.command, "--labels", "labels", "--features", "target", "--output", "judge")
    assert trained.exit_code == 0, trained.output
    result = calibrate("--labels", "labels", "--loss", "0.2", "--window", "2", "--output", "rules")
    assert result.exit_code == 0, result.output
    table = (workplace / "rules" / "rules.csv").read_text()
    rows = {row["rule"]: row for row in csv.DictReader(io.StringIO(table))}
    assert list(rows) == ["autojudge", *DIALS]
    chosen = json.loads((workplace / "rules" / "rules.json").read_text())["rules"]
    for name, row in rows.items():
        assert row["setting"] in chosen[name]
        assert float(row["calibration_loss"]) <= 0.2
    by_name = {run.info.run_name: run for run in runs()}
    for name in rows:
        run = by_name[f"rule_{name}"]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["judge/recall"] == pytest.approx(float(rows[name]["recall"]), abs=1e-4)
        assert run.data.params["rule"] == name
    files = {file.path for file in MlflowClient().list_artifacts(by_name["rules arith"].info.run_id)}
    assert files == {"rules.png", "rules.csv", "rules.json"}
    check_decoding_turns_at_the_scores(LabelSet.read(workplace / "labels"))
    again = calibrate("--labels", "labels", "--loss", "0.2", "--window", "2", "--output", "rules")
    assert again.exit_code == 0, again.output
    assert len(runs()) == len(by_name), "a run is made once"


def check_decoding_turns_at_the_scores(labels: LabelSet) -> None:
    """At the first mismatch of a prompt, decoding emits the draft's token where the score is below the bound."""
    mining = replay.prepared(labels, 4)
    names = [name for name in DIALS if name != "fly"]  # whose window depends on where a draft ends
    run = replay.MismatchReplay(mining, {name: DIALS[name] for name in names}, 2, K)
    scored = list(run.run(mining.examples, labels.labels, lambda: None))
    assert len(scored) == sum(label.split in replay.SPLITS and label.important is not None for label in labels.labels)
    engine, turned = Engine(mining.pair.models, mining.pair.eos_ids), set()
    first = {label.prompt_id: label for label in reversed(labels.labels)}
    prompts = {each.prompt_id: mining.pair.text.encode(each.messages()) for each in mining.examples}
    for label, scores in scored:
        if first[label.prompt_id] != label:
            continue
        for name, at in ((name, abs(scores[name]) * factor) for name in names for factor in (0.98, 1.02)):
            dial = DIALS[name]
            if not min(dial.lossless, dial.loosest) < at < max(dial.lossless, dial.loosest):
                continue
            decoder = Chain(DraftModel(4), RULES[name](at), GREEDY, bonus=False)  # so that every token is drafted
            out = engine.generate(decoder, prompts[label.prompt_id], label.position + 5, CertainRng())
            accepted = scores[name] < dial.bound(at)
            assert out.token_ids[label.position] == (label.draft_token if accepted else label.target_token)
            turned.add((name, accepted))
    assert len(turned) == 2 * len(names)


@pytest.mark.nightly
def test_a_calibration_that_was_killed_continues(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt is scored twice, none is lost, and the result is that of one that was not killed, bit by bit: prompts
    that are decoded together round otherwise in other company, so they are decoded one by one here."""
    assert collect("--limit", "40", "--output", "labels").exit_code == 0
    how = ("--labels", "labels", "--rules", "typical,entropy", "--judge", "none", "--loss", "0.2", "--batch", "1")
    whole = calibrate(*how, "--output", "whole")
    assert whole.exit_code == 0, whole.output
    wanted = keys(workplace / "whole" / "scores.jsonl")
    assert len(wanted) > 4
    real = Journal._add
    for at in (3, len(wanted) - 1):

        def add(self: Journal, key: Any, value: Any, at: int = at) -> None:
            if len(self._units) == at:
                raise KeyboardInterrupt
            real(self, key, value)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "_add", add)
            assert calibrate(*how, "--output", "killed").exit_code == 130
        assert len(keys(workplace / "killed" / "scores.jsonl")) == at, "what was scored stays"
    decoded: list[str] = []
    scores = replay.MismatchReplay._scores

    def counted(self: Any, prompt: Any, response: Any, label: Any) -> Any:
        decoded.append(label.prompt_id)
        return (yield from scores(self, prompt, response, label))

    monkeypatch.setattr(replay.MismatchReplay, "_scores", counted)
    again = calibrate(*how, "--output", "killed")
    assert again.exit_code == 0, again.output
    assert len(set(decoded)) <= 1, "one prompt was missing"
    assert sorted(keys(workplace / "killed" / "scores.jsonl")) == sorted(wanted)
    for name in ("rules.csv", "rules.json"):
        assert (workplace / "killed" / name).read_text() == (workplace / "whole" / name).read_text()


def keys(path: Path) -> list[Any]:
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]
