"""Whether a judge beats rules without training: chosen on one half of the prompts, compared on the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from helpers.comparisons import compared, record, settings
from specexp import config
from specexp.evaluation.report.comparison import Comparison
from specexp.evaluation.report.formatting import plain
from specexp.evaluation.report.judge_and_rules import duel, judge_against_rules
from specexp.evaluation.report.verdict import verdict

METHODS = "baseline,speculative,autojudge,topk,typical"


def run(
    seconds: dict[str, float],
    wrong: Callable[[str, int], bool] = lambda label, i: False,
    methods: str = METHODS,
    rounds: Mapping[str, float] = {},
    num_prompts: int = 80,
    **more: Any,
) -> Comparison:
    """Seconds and rounds of each method as a share of plain decoding's, and the prompts that it answers wrongly."""
    rng = random.Random(2)
    experiment = replace(config.resolve("arith_quick"), methods=settings(methods), **more)
    by_label = {
        method.label: [
            {**record(rng, method, f"p{i:03}", 0, True), "correct": not wrong(method.label, i),
             "seconds": seconds.get(method.label, 1.0) * rng.uniform(0.95, 1.05),
             "num_rounds": round(1000 * rounds.get(method.label, seconds.get(method.label, 1.0))) + rng.randrange(5)}
            for i in range(num_prompts)
        ]
        for method in experiment.methods
    }  # fmt: skip
    return compared(experiment, by_label, num_prompts)


def test_a_faster_judge_is_better_where_it_loses_no_answers() -> None:
    comparison = run({"autojudge": 0.3, "topk": 0.5, "typical": 0.4})
    found = duel(comparison)
    assert found is not None
    assert (found.judge.label, found.rule.label, found.num_prompts) == ("autojudge", "typical", 40)
    assert found.ratio == pytest.approx(4 / 3, rel=0.05)
    assert found.low < found.ratio < found.high
    assert (found.outcome, found.delta, found.accuracy_p) == (1, 0, 1)
    said = plain(judge_against_rules(comparison))
    assert said.startswith("A judge is better than rules without training on this task: chosen on every other prompt")
    assert " and compared on the 40 in between, autojudge decodes at 1.3" in said
    assert "p < 0.001), with 1.3" in said
    assert said.endswith(" its tokens a call (p < 0.001) and 0.0 points of accuracy (McNemar p = 1.00).")
    assert said in [plain(sentence) for sentence in verdict(comparison)]


def test_a_faster_rule_is_better_and_an_equal_one_is_not_told_apart() -> None:
    worse = run({"autojudge": 0.4, "topk": 0.5, "typical": 0.3})
    assert "task, but worse: " in plain(judge_against_rules(worse))
    equal = run({"autojudge": 0.4, "topk": 0.5, "typical": 0.4})
    assert "as far as these prompts tell: " in plain(judge_against_rules(equal))


def test_as_many_tokens_a_call_are_no_win_whatever_the_clock_says() -> None:
    same = dict.fromkeys(("autojudge", "typical"), 0.3)
    found = duel(run({"autojudge": 0.3, "topk": 0.5, "typical": 0.4}, rounds=same))
    assert found is not None
    assert found.speed_p < 0.01
    assert found.calls_p > 0.05
    assert found.outcome == 0


def test_a_rule_that_loses_answers_does_not_stand_for_rules() -> None:
    comparison = run({"autojudge": 0.4, "topk": 0.5, "typical": 0.2}, lambda label, i: label == "typical" and i % 4 < 2)
    found = duel(comparison)
    assert found is not None
    assert found.rule.label == "topk"
    assert found.outcome == 1


def test_one_that_is_faster_and_loses_more_is_not_better() -> None:
    """Every rule loses, so that the one that loses least stands for them; it is faster all the same."""
    wrong = {"typical": 3, "topk": 2}
    comparison = run({"autojudge": 0.4, "topk": 0.2, "typical": 0.1}, lambda label, i: i % 8 < wrong.get(label, 0))
    found = duel(comparison)
    assert found is not None
    assert found.rule.label == "topk"
    assert found.divided
    assert found.outcome == 0
    assert "one is faster, the other more accurate" in plain(judge_against_rules(comparison))


def test_no_prompt_chooses_and_compares() -> None:
    """A rule that is fast on the prompts that choose, and slow on those that compare, is chosen and loses."""
    comparison = run({"autojudge": 0.4, "topk": 0.5, "typical": 0.5})
    records = {entry.label: list(entry.records) for entry in comparison.entries}
    for i, each in enumerate(records["topk"]):
        each["seconds"] = 0.1 if i % 2 == 0 else 0.9
        each["num_rounds"] = round(1000 * each["seconds"])
    found = duel(compared(comparison.experiment, records, 80))
    assert found is not None
    assert found.rule.label == "topk"
    assert found.ratio == pytest.approx(0.9 / 0.4, rel=0.05)


@pytest.mark.parametrize(
    "more",
    [{"num_prompts": 11}, {"methods": "baseline,speculative,topk"}, {"methods": "baseline,autojudge"}, {"repeats": 2},
     {"methods": "speculative,autojudge,topk"}, {"batch": 4}],
)  # fmt: skip
def test_where_it_cannot_be_told_nothing_is_said(more: dict[str, Any]) -> None:
    assert judge_against_rules(run({"autojudge": 0.4, "topk": 0.5}, **more)) == []


def test_what_grades_nothing_is_not_compared() -> None:
    comparison = run({"autojudge": 0.4, "topk": 0.5})
    records = {
        entry.label: [{**each, "gold": None, "correct": None} for each in entry.records] for entry in comparison.entries
    }
    assert judge_against_rules(compared(comparison.experiment, records, 80)) == []
