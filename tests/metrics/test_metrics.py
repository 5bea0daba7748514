"""Metrics from sums, checked by hand on made-up records; statistics against published values."""

from __future__ import annotations

from typing import Any

import pytest

from specexp.metrics.summary import check_identities, summarise
from specexp.profiling.call_costs import Costs


def record(label: str, prompt: str, **more: Any) -> dict[str, Any]:
    """A plain-decoding record of 10 tokens in one second."""
    base = {
        "prompt_id": prompt, "turn": 0, "paired": True, "category": "", "method": label, "label": label, "repeat": 0,
        "token_ids": list(range(10)),
        "num_rounds": 10, "num_drafted": 0, "num_accepted": 0, "num_judged": 0, "num_cut": 0, "num_full": 0,
        "num_tested": 0, "overlap": 0.0, "num_target_calls": 10, "num_draft_calls": 0, "accepted_histogram": [],
        "seconds": 1.0, "prefill_seconds": 0.5, "time_to_first_token": 0.6, "correct": True,
        "answer": "7", "finish_reason": "stop",
        "num_target_positions": 10, "num_draft_positions": 0,
    }  # fmt: skip
    return {**base, **more}


def chain(prompt: str, **more: Any) -> dict[str, Any]:
    """Ten tokens in three rounds of gamma 4: 4, 3 and 1 accepted, one token cut."""
    counts = {
        "num_rounds": 3, "num_drafted": 12, "num_accepted": 8, "num_cut": 1, "num_full": 1, "num_tested": 10,
        "overlap": 7.5, "num_target_calls": 3, "num_draft_calls": 12, "accepted_histogram": [0, 1, 0, 1, 1],
        "drafted_before_end": [0, 0, 0, 0, 3], "accepted_before_end": [0, 1, 0, 1, 1], "num_judged_before_end": 0,
        "seconds": 0.5, "num_target_positions": 15, "num_draft_positions": 12,
    }  # fmt: skip
    return record("speculative", prompt, **{**counts, **more})


COSTS = Costs(draft_step=0.02, target={1: 0.1, 5: 0.12})


def test_a_chains_metrics() -> None:
    records = [chain("a"), chain("b", correct=False)]
    plain = [record("baseline", "a"), record("baseline", "b"), record("baseline", "not compared")]
    got = summarise(records, plain, COSTS, gamma=4)
    expected = {
        "accept/mean_length": 20 / 6,
        "accept/alpha": 15 / 20,
        "accept/draft_rate": 16 / 24,
        "accept/judged_rate": 0.0,
        "accept/position_1": 1.0,
        "accept/position_2": 4 / 6,
        "accept/position_3": 4 / 6,
        "accept/position_4": 2 / 6,
        "calls/target_per_token": 6 / 20,
        "calls/draft_per_token": 24 / 20,
        "speed/tokens_per_second": 20.0,
        "speed/prefill_seconds": 0.5,
        "speed/time_to_first_token": 0.6,
        "speed/speedup": 2.0,
        "speed/speedup_end_to_end": 1.5,
        "speed/c": 0.2,
        "speed/v": 1.2,
        "speed/attainable": (20 / 6) / (4 * 0.2 + 1.2),
        "speed/realised": 2.0 / ((20 / 6) / 2.0),
        "speed/predicted_speedup": (1 - 0.75**5) / 0.25 / 2.0,
        "quality/accuracy": 0.5,
        "quality/accuracy_delta": -0.5,
        "quality/mcnemar_p": 1.0,
        "quality/equal_to_baseline": 1.0,
    }
    assert {key: got[key] for key in expected} == pytest.approx(expected)


def test_shares_of_positions_sum_to_the_accepted_tokens_of_a_round() -> None:
    got = summarise([chain("a")], [], None, gamma=4)
    assert sum(got[f"accept/position_{i}"] for i in range(1, 5)) == pytest.approx(8 / 3)
    assert "speed/speedup" not in got, "no baseline, no speed-up"


def test_alpha_one_predicts_gamma_plus_one() -> None:
    got = summarise([chain("a", overlap=10.0)], [record("baseline", "a")], COSTS, gamma=4)
    assert got["speed/predicted_speedup"] == pytest.approx(5 / 2)


def test_a_block_is_not_predicted_by_the_formula_of_tokens() -> None:
    plain = [record("baseline", "a")]
    token, block = (summarise([chain("a")], plain, COSTS, gamma=4, by_token=by_token) for by_token in (True, False))
    assert token.keys() - block.keys() == {"speed/predicted_speedup"}
    assert block["speed/attainable"] == pytest.approx((10 / 3) / (4 * 0.2 + 1.2))


def test_rounds_that_differ_are_priced_as_they_were() -> None:
    """Nine drafted tokens in three rounds: a mean of three, on four positions."""
    early = chain("a", num_drafted=9, num_draft_calls=9, num_target_positions=12)
    got = summarise([early], [record("baseline", "a")], COSTS, gamma=4, varies=True)
    assert got["speed/v"] == pytest.approx(1.15)
    assert got["speed/attainable"] == pytest.approx((10 / 3) / (3 * 0.2 + 1.15))
    assert "speed/predicted_speedup" not in got


def test_what_is_looked_up_costs_no_draft() -> None:
    costs = Costs(draft_step=None, target={1: 0.1, 5: 0.12})
    looked_up = chain("a", method="lookup", num_draft_calls=0)
    got = summarise([looked_up], [record("baseline", "a")], costs, gamma=4, varies=True)
    assert got["speed/attainable"] == pytest.approx((10 / 3) / 1.2)
    assert "speed/c" not in got
    # Lookup may find nothing at all, and is then plain decoding.
    nothing = record("lookup", "a", accepted_histogram=[10])
    check_identities(nothing)
    got = summarise([nothing], [record("baseline", "a")], costs, gamma=4, varies=True)
    assert got["speed/attainable"] == pytest.approx(1)
    assert "accept/alpha" not in got


def test_plain_decoding_has_a_mean_length_of_one_and_no_alpha() -> None:
    got = summarise([record("baseline", "a")], [record("baseline", "a")], COSTS, gamma=0)
    assert got["accept/mean_length"] == 1
    assert got["calls/target_per_token"] == 1
    assert "accept/alpha" not in got


def test_tasks_without_answers_log_agreement_alone() -> None:
    got = summarise([record("baseline", "a", correct=None)], [record("baseline", "a", correct=None)], None, gamma=0)
    assert got["quality/equal_to_baseline"] == 1
    assert "quality/accuracy" not in got


def test_identities_hold_for_good_records() -> None:
    check_identities(chain("a"))
    check_identities(record("baseline", "a"))
    # Without the bonus token, a full round emits one token less.
    check_identities(chain("a", num_cut=0), bonus=False)


@pytest.mark.parametrize(
    "broken",
    [{"num_accepted": 9}, {"num_cut": 0}, {"token_ids": [1]}, {"accepted_histogram": [1, 1, 0, 0, 1]},
     {"num_target_calls": 4}, {"num_tested": 13}, {"num_judged": 9}],
)  # fmt: skip
def test_a_broken_count_is_noticed(broken: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_identities(chain("a", **broken))


def test_a_chains_first_draft_call_is_priced_by_the_tokens_that_it_takes_in() -> None:
    """Two chains of three begin with two tokens: 5/3 on the mean, two thirds of the way to what two cost more."""
    costs = Costs(0.02, {1: 0.1, 5: 0.12}, catch_up={1: 0.03, 2: 0.06, 5: 0.09})
    plain, caught = [record("baseline", "a")], chain("a", num_draft_positions=14)
    got = summarise([caught], plain, costs, gamma=4)
    assert got["speed/catch_up"] == pytest.approx(2 / 3 * 0.3)
    call = 4 * 0.2 + 0.2 + 1.2
    assert got["speed/attainable"] == pytest.approx((10 / 3) / call)
    assert got["speed/predicted_speedup"] == pytest.approx((1 - 0.75**5) / 0.25 / call)
    # A head takes in all that the last round committed: three tokens more a round.
    got = summarise([chain("a", num_draft_positions=21)], plain, costs, gamma=4, varies=True)
    assert got["speed/catch_up"] == pytest.approx(0.3 + 2 / 3 * 0.3)
    assert got["speed/attainable"] == pytest.approx((10 / 3) / (4 * 0.2 + got["speed/catch_up"] + 1.2))
    # It drafts in one round of three.
    turns = chain("a", method="chained", num_draft_calls=4, num_draft_positions=8, proposers={
        "suffix": {"num_rounds": 2, "num_drafted": 8, "num_accepted": 4},
        "draft": {"num_rounds": 1, "num_drafted": 4, "num_accepted": 4},
    })  # fmt: skip
    got = summarise([turns], plain, costs, gamma=4, varies=True)
    assert got["speed/catch_up"] == pytest.approx(0.6 / 3)
    assert "speed/catch_up" not in summarise([caught], plain, COSTS, gamma=4), "a profile without such calls"
    measured = summarise([caught], plain, costs, gamma=4, claimed=False)
    assert {"speed/c", "speed/v", "speed/catch_up"} <= measured.keys(), "they are measured wherever that is"


def test_a_draft_that_makes_a_block_in_a_call_is_priced_by_the_call() -> None:
    costs = Costs(0.02, {1: 0.1, 5: 0.12}, block=True)
    got = summarise([chain("a", num_draft_calls=3)], [record("baseline", "a")], costs, gamma=4)
    assert got["speed/attainable"] == pytest.approx((10 / 3) / (0.2 + 1.2))
