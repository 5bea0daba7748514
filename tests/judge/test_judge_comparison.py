"""Judges compared, and a judge's report: AUCs, tests and shares against hand-computed ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from helpers.judges import random_network
from helpers.networks import network_arrays
from specexp.evaluation.report import transfer
from specexp.judge import trees
from specexp.judge.judge import Facts, Judge
from specexp.judge.labels import Label
from specexp.judge.network import Network
from specexp.judge.trained_judge import TrainedJudge
from specexp.judge_comparison import comparison
from specexp.judge_comparison.paired_auc import PromptResampling, draws, holm, interval, paired_p
from specexp.judge_report import cases, token_kinds
from specexp.judge_report.reliability import reliability


def test_an_auc_of_a_draw_is_that_of_its_repeated_mismatches() -> None:
    numbers = np.random.default_rng(0)
    important, prompt = numbers.random(60) < 0.4, numbers.integers(9, size=60)
    p = np.round(numbers.random(60), 1)  # with equal ones
    resampling = PromptResampling(important, prompt, draws(9, 150, seed=3))
    for counts, auc in zip(resampling.counts, resampling.aucs(p), strict=True):
        rows = np.repeat(np.arange(60), counts[prompt])
        assert auc == pytest.approx(roc_auc_score(important[rows], p[rows]), abs=1e-12)
    assert resampling.counts.sum(axis=1).tolist() == [9] * 150


def test_a_draw_of_one_kind_has_no_auc_and_is_left_out() -> None:
    """Prompt 0 has an important mismatch alone: of the four draws of two prompts, those of one prompt have no pair."""
    counts = np.array([[2, 0], [1, 1], [1, 1], [0, 2]])
    resampling = PromptResampling(np.array([True, False]), np.array([0, 1]), counts)
    values = resampling.aucs(np.array([0.9, 0.1]))
    assert np.isnan(values).tolist() == [True, False, False, True]
    assert interval(values) == (1.0, 1.0)


def test_the_paired_test_by_hand() -> None:
    """Two of ten known draws are not above 0, and eight are not below: p = 2 (2 + 1) / (10 + 1)."""
    difference = np.array([0.1] * 8 + [-0.1, -0.2, np.nan])
    assert paired_p(0.5 + difference, np.full(11, 0.5)) == pytest.approx(6 / 11)
    assert paired_p(np.full(11, 0.5), 0.5 + difference) == pytest.approx(6 / 11), "of both sides"
    assert paired_p(np.full(5, 0.7), np.full(5, 0.7)) == 1.0
    assert paired_p(np.full(99, 0.8), np.full(99, 0.7)) == pytest.approx(2 / 100)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.6: times 4, 3, 2, 1, and never below the one before."""
    assert holm([0.03, 0.6, 0.01, 0.02]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert holm([0.02, 0.5, 0.9]) == pytest.approx([0.06, 1.0, 1.0])
    assert holm([]) == []


def made_up(features: str, kind: str, p: np.ndarray, validation: float, important: np.ndarray) -> TrainedJudge:
    facts = Facts("t", "d", "v", features, 1, 4, kind=kind)
    metrics = {
        "judge/roc_auc": float(roc_auc_score(important, p)), "judge/recall": 0.9, "judge/accepted": 0.5,
    }  # fmt: skip
    return TrainedJudge(Judge(random_network(kind, 4), facts), validation, {}, metrics, p)


def test_the_chosen_judge_is_told_from_a_worse_one_and_not_from_its_double() -> None:
    numbers = np.random.default_rng(1)
    important = numbers.random(400) < 0.4
    good, bad = important + 0.6 * numbers.normal(size=400), important + 3 * numbers.normal(size=400)
    candidates = {
        "both_mlp": made_up("both", "mlp", good, 0.95, important),
        "target_mlp": made_up("target", "mlp", good + 0.01 * numbers.normal(size=400), 0.95, important),
        "target_trees": made_up("target", "trees", bad, 0.9, important),
    }
    assert comparison.chosen_of(candidates) == "target_mlp", "of equal ones, that without an extra draft forward"
    lucky = candidates | {"draft_logistic": made_up("draft", "logistic", bad, 0.96, important)}
    assert comparison.chosen_of(lucky) == "draft_logistic", "the test split chooses nothing"
    ticks = itertools.count()
    judges = comparison.compared(
        candidates, "both_mlp", important, [f"p{i // 4}" for i in range(400)], lambda: float(next(ticks))
    )
    by_name = {each.name: each for each in judges}
    assert [each.differs for each in judges] == [each.name == "target_trees" for each in judges]
    assert judges[-1].name == "target_trees"
    assert by_name["both_mlp"].p_adjusted is None
    assert by_name["target_trees"].p_adjusted == pytest.approx(2 * 2 / 2001), "2,000 draws, two comparisons"
    assert [by_name[name].extra_draft_forwards for name in candidates] == [1, 0, 0]
    assert {each.microseconds for each in judges} == {1e6 / 8}, "a tick for eight tokens"
    assert all(each.low < each.roc_auc < each.high for each in judges)
    said = comparison.sentences(judges, "both_mlp", 100)
    assert said[1] == "Worse than it (paired bootstrap of prompts, Holm, p < 0.05): target_trees."
    assert said[2].startswith("Not shown to differ from it: target_mlp (p = ")
    assert said[3] == "both_mlp needs one more draft forward a round; without it: target_mlp."


def test_reliability_by_hand() -> None:
    """Three bins hold 0.15, 0.25 twice, and 0.95 with 1, which is in the last one: gaps 0.85, 0.25 and 0.025."""
    p = np.array([0.15, 0.25, 0.95, 1.0, 0.25])
    important = np.array([True, False, True, True, False])
    resampling = PromptResampling(important, np.arange(5), np.array([[1, 1, 1, 1, 1], [5, 0, 0, 0, 0]]))
    got = reliability(p, resampling)
    assert got.brier == pytest.approx((0.85**2 + 2 * 0.25**2 + 0.05**2) / 5)
    assert got.ece == pytest.approx((0.85 + 2 * 0.25 + 2 * 0.025) / 5)
    assert [(each.mismatches, round(each.mean, 3), each.share) for each in got.bins] == [
        (1, 0.15, 1.0), (2, 0.25, 0.0), (2, 0.975, 1.0),
    ]  # fmt: skip
    alone = 0.85, got.ece
    assert got.ece_interval == pytest.approx(np.percentile(alone, (2.5, 97.5)))
    assert got.brier_interval == pytest.approx(np.percentile((0.85**2, got.brier), (2.5, 97.5)))
    mixed = reliability(np.array([0.3, 0.3, 0.3]), PromptResampling(np.array([True, False, False]), np.arange(3),
                                                                    np.ones((1, 3), int)))  # fmt: skip
    assert mixed.ece == pytest.approx(1 / 3 - 0.3), "gaps within a bin cancel"


@pytest.mark.parametrize(
    "text,kind",
    [
        ("12", "number"), (" x2", "number"), ("½", "number"), (" +", "operator"), ("**", "operator"),
        (" =", "operator"), (".", "punctuation"), ("),", "punctuation"), (" Hence", "word"), ("é", "word"),
        (" ", "whitespace"), ("\n\n", "whitespace"), ("", "special"),
    ],
)  # fmt: skip
def test_a_token_has_its_kind(text: str, kind: str) -> None:
    assert token_kinds.kind_of(text) == kind


def test_shares_of_kinds_by_hand() -> None:
    important = np.array([True, False, False, True, False])
    passes = np.array([False, True, True, True, False])
    rows = {each.kind: each for each in token_kinds.shares(["1", "2", " a", " b", "+"], important, passes)}
    assert list(rows) == ["number", "operator", "word"]
    assert (rows["number"].mismatches, rows["number"].important, rows["number"].accepted) == (2, 0.5, 0.5)
    assert (rows["word"].accepted, rows["word"].important_accepted) == (1.0, 1)
    assert rows["operator"].accepted == rows["operator"].important == 0.0


def label(number: int, important: bool = False) -> Label:
    return Label(f"p{number}", number, 1, 2, "a", "b", important, "1", "1", "test")


def test_cases_do_not_depend_on_what_the_judge_says() -> None:
    labels = [label(number) for number in range(90)]
    passes = np.arange(90) % 3 > 0
    chosen = cases.selected(labels, passes)
    assert [bool(passes[i]) for i in chosen] == [True] * 20 + [False] * 20
    order = cases.selected(labels, np.ones(90, bool))
    passing = [i for i in order if passes[i]]
    assert 0 < len(passing) < 20
    assert passing == chosen[: len(passing)], "one order for all"
    assert len(cases.selected(labels[:7], passes[:7])) == 7
    context = cases.CaseContext("", "")
    wrong = [
        cases.Case(label(0, important), 0.1, ok, context).wrong for important in (True, False) for ok in (True, False)
    ]
    assert wrong == [True, False, False, True]


def test_bounds_of_trees_are_rounded_down() -> None:
    bounds = np.array([0.1, -0.1, 1.0, 1 + 2.0**-30, np.inf])
    rounded = trees._rounded_down(bounds)
    assert rounded.dtype == np.float32
    assert (rounded <= bounds).all()
    assert (np.nextafter(rounded[:4], np.float32(np.inf)) > bounds[:4]).all(), "the largest that are not above"
    assert np.isfinite(rounded).all()


BROKEN: dict[str, tuple[str, Any, str]] = {
    "a child outside": ("left", 7, "left holds numbers that are not in"),
    "a feature that is none": ("feature", 4, "feature holds numbers that are not in"),
    "not finite": ("value", np.nan, "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trees_are_refused(name: str) -> None:
    array, value, message = BROKEN[name]
    arrays = network_arrays("trees", 4)
    assert Network("trees", arrays).num_features == 4
    arrays[array] = arrays[array].copy()
    arrays[array][0, 1] = value
    with pytest.raises(ValueError, match=message):
        Network("trees", arrays)
    with pytest.raises(ValueError, match="must be float32"):
        Network("trees", network_arrays("trees", 4) | {"bound": np.zeros((1, 7), np.float32)})
    with pytest.raises(ValueError, match="depth is 9"):
        Network("trees", network_arrays("trees", 4) | {"depth": np.array([9], np.int32)})


def test_tags_say_whether_a_judge_transfers() -> None:
    assert transfer.tags("arith", "arith") == {"judge_task": "arith", "transfer": "false"}
    assert transfer.tags("gsm8k", "arith") == {"judge_task": "gsm8k", "transfer": "true"}
    assert transfer.tags("", "arith") == {}
