"""Settings compared with plain decoding: which record is compared with which, and what is summed before it is tested.

The records have values that no two of them share, so that a wrong partner or a wrong sum gives another number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specexp.metrics.paired import SpeedUp, accuracy, against, by_prompt, paired, timed


def record(prompt: str, repeat: int = 0, turn: int = 0, **more: Any) -> dict[str, Any]:
    base = {
        "prompt_id": prompt, "turn": turn, "repeat": repeat, "paired": True, "method": "speculative",
        "token_ids": [1, 2, 3], "seconds": 1.0, "prefill_seconds": 0.25, "num_rounds": 2, "correct": True,
        "answer": "5",
    }  # fmt: skip
    return {**base, **more}


def plain(prompt: str, repeat: int = 0, turn: int = 0, **more: Any) -> dict[str, Any]:
    return record(prompt, repeat, turn, method="baseline", **more)


def test_a_record_is_compared_with_the_same_prompt_turn_and_repeat() -> None:
    keys = [(prompt, repeat, turn) for prompt in "ab" for repeat in (0, 1) for turn in (0, 1)]
    candidate = [record(*key, seconds=i + 1.0) for i, key in enumerate(keys)]
    baseline = [plain(*key, seconds=10.0 * (i + 1)) for i, key in enumerate(keys)]
    pairs = paired(candidate, list(reversed(baseline)))
    assert [(a["seconds"], b["seconds"]) for a, b in pairs] == [(i, 10.0 * i) for i in range(1, 9)]


def test_equality_is_judged_between_the_same_repeats() -> None:
    """Each repeat has its own seed and so its own output: compared across repeats, none would be equal."""
    candidate = [record("a", repeat, token_ids=[repeat, 7]) for repeat in range(3)]
    baseline = [plain("a", repeat, token_ids=[repeat, 7]) for repeat in range(3)]
    assert against(candidate, baseline, 1)["quality/equal_to_baseline"] == 1.0
    candidate[2]["token_ids"] = [2, 8]
    assert against(candidate, baseline, 1)["quality/equal_to_baseline"] == pytest.approx(2 / 3)


def test_a_speedup_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    candidate = [record("a", token_ids=[1] * 10, seconds=1.0), record("b", token_ids=[1] * 30, seconds=5.0)]
    baseline = [plain("a", token_ids=[1] * 12, seconds=4.0), plain("b", token_ids=[1] * 28, seconds=16.0)]
    sums = SpeedUp()
    for one, other in paired(candidate, baseline):
        sums.add(one, other)
    assert sums.decoding == pytest.approx((40 / 6) / (40 / 20))
    assert sums.end_to_end == pytest.approx((40 / 6.5) / (40 / 20.5))
    metrics = against(candidate, baseline, 1)
    assert metrics["speed/speedup"] == pytest.approx(10 / 3)
    assert metrics["speed/speedup_end_to_end"] == pytest.approx(20.5 / 6.5)
    assert metrics["speed/speedup_low"] <= metrics["speed/speedup"] <= metrics["speed/speedup_high"]


def test_turns_and_repeats_of_a_prompt_are_one_draw() -> None:
    records = [
        record("b", 0, 0, token_ids=[1] * 4, seconds=1.0), record("a", 0, 0, token_ids=[1] * 2, seconds=8.0),
        record("b", 0, 1, token_ids=[1] * 5, seconds=2.0), record("b", 1, 0, token_ids=[1] * 6, seconds=4.0),
    ]  # fmt: skip
    assert [len(group) for group in by_prompt(records).values()] == [3, 1]
    times = timed(records, "seconds")
    assert np.asarray(times.tokens).tolist() == [2, 15]
    assert np.asarray(times.seconds).tolist() == [[8.0], [7.0]]
    assert np.asarray(timed(records, "seconds", "prefill_seconds").seconds).tolist() == [[8.25], [7.75]]


def test_one_prompt_alone_has_no_interval() -> None:
    metrics = against([record("a", r, seconds=0.5) for r in range(4)], [plain("a", r) for r in range(4)], 1)
    assert metrics["speed/speedup"] == pytest.approx(2.0)
    assert "speed/speedup_low" not in metrics


def test_plain_decoding_is_not_tested_against_itself() -> None:
    metrics = against([plain("a"), plain("b")], [plain("a"), plain("b")], 1)
    assert metrics["speed/speedup"] == 1.0
    assert not {"speed/speedup_p", "quality/prompts_for_one_point"} & set(metrics)


def test_repeats_of_a_prompt_count_once_in_the_test_of_answers() -> None:
    """Prompt a is lost in two of three repeats, b gained in one, c unchanged: p is that of the sums -2, 1 and 0."""
    right = {"a": [False, False, True], "b": [True, True, True], "c": [True, True, True]}
    before = {"a": [True, True, True], "b": [True, False, True], "c": [True, True, True]}
    candidate = [record(p, r, correct=c) for p, each in right.items() for r, c in enumerate(each)]
    baseline = [plain(p, r, correct=c) for p, each in before.items() for r, c in enumerate(each)]
    metrics = against(candidate, baseline, 1)
    assert metrics["quality/accuracy_delta"] == pytest.approx(-1 / 9)
    # Of the sign patterns of (2, 1), |sum| is 1 or 3: all four are as far from 0 as -1.
    assert metrics["quality/mcnemar_p"] == 1.0
    assert metrics["quality/accuracy_delta_low"] <= -1 / 9 <= metrics["quality/accuracy_delta_high"]


def test_one_prompt_lost_in_every_repeat_is_one_prompt_lost() -> None:
    """Three lost records of one prompt would be p = 0.25 if each counted."""
    candidate = [record(p, r, correct=p != "a") for p in "ab" for r in range(3)]
    baseline = [plain(p, r) for p in "ab" for r in range(3)]
    assert against(candidate, baseline, 1)["quality/mcnemar_p"] == 1.0


def test_answers_after_a_history_of_its_own_are_not_compared() -> None:
    """A second turn after the method's own first answer has another prompt: neither its tokens nor its answer count."""
    candidate = [record("a"), record("a", turn=1, paired=False, token_ids=[9], correct=False), record("b")]
    baseline = [plain("a"), plain("a", turn=1), plain("b")]
    metrics = against(candidate, baseline, 1)
    assert metrics["quality/equal_to_baseline"] == 1.0
    assert metrics["quality/accuracy_delta"] == 0.0
    assert metrics["speed/speedup"] == pytest.approx((7 / 3) / (9 / 3)), "its time is spent all the same"


def test_ungraded_records_are_left_out_of_accuracy() -> None:
    records = [record("a", correct=True), record("a", 1, correct=False), record("b", correct=None), record("c")]
    metrics = accuracy(records)
    assert metrics["count/graded"] == 2
    assert metrics["quality/accuracy"] == pytest.approx(2 / 3)
    assert metrics["quality/accuracy_low"] < 2 / 3 < metrics["quality/accuracy_high"]
    assert accuracy([record("a", correct=None)]) == {}


def test_tasks_without_answers_get_an_interval_of_agreement_by_prompts() -> None:
    """Prompt a agrees in one of two repeats, b in both: 1.5 of 2 prompts, not 3 of 4 records."""
    from specexp.metrics.statistics import wilson

    method = [record("a", 0, correct=None), record("a", 1, correct=None, token_ids=[9]), record("b", 0, correct=None),
            record("b", 1, correct=None)]  # fmt: skip
    baseline = [plain(p, r, correct=None) for p in "ab" for r in (0, 1)]
    metrics = against(method, baseline, 1)
    low, high = metrics["quality/equal_to_baseline_low"], metrics["quality/equal_to_baseline_high"]
    assert (low, high) == pytest.approx(wilson(1.5, 2))
