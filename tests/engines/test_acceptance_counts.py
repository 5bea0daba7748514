"""What servers say about their drafts, in their documented forms, under our names; and what cannot be true."""

from __future__ import annotations

from typing import Any

import pytest

from specexp.engines.acceptance import DraftCounts, of_answer, of_counters, total
from specexp.engines.stream import Answer
from specexp.metrics import catalogue

# The form of vLLM's --per-request-spec-decode-metrics summary.
VLLM = {
    "mean_acceptance_length": 1.2325581395348837,
    "draft_acceptance_rate": 0.07751937984496124,
    "acceptance_histogram": [39, 1, 0, 3],
    "num_spec_steps": 43,
    "num_accepted_draft_tokens": 10,
    "num_draft_tokens": 129,
    "num_spec_tokens": 3,
}
SGLANG = {"completion_tokens": 100, "spec_verify_ct": 25, "spec_accept_token_num": 74, "spec_draft_token_num": 100}


def answer(**server: Any) -> Answer:
    return Answer(server=server)


def counters(drafts: int, drafted: int, accepted: int, by_position: list[int], engine: int = 0) -> str:
    labels = f'engine="{engine}",model_name="m"'
    lines = [
        "# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.",
        "# TYPE vllm:spec_decode_num_drafts_total counter",
        f"vllm:spec_decode_num_drafts_total{{{labels}}} {drafts}.0",
        f"vllm:spec_decode_num_drafts_created{{{labels}}} 1.7e+09",
        f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} {float(drafted):e}",
        f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}} {accepted}.0",
        *(
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="{place}"}} {count}.0'
            for place, count in enumerate(by_position)
        ),
        f"vllm:generation_tokens_total{{{labels}}} 999.0",
    ]
    return "\n".join(lines) + "\n"


def test_vllm_says_it_of_one_request() -> None:
    found = of_answer(answer(metrics={"speculative_decoding": VLLM}))
    assert found == DraftCounts("vLLM metrics", 129, 10, 43, (4, 3, 3))
    metrics = found.metrics()
    assert metrics["accept/draft_rate"] == VLLM["draft_acceptance_rate"]
    assert metrics["accept/mean_length"] == pytest.approx(VLLM["mean_acceptance_length"], rel=1e-15)
    assert metrics["accept/drafted_length"] == 3
    assert metrics["accept/position_1"] == 4 / 43
    assert not catalogue.unknown(metrics)
    assert found.faults(num_tokens=54) == []


def test_vllm_counts_all_requests_between_two_readings() -> None:
    before = counters(10, 40, 20, [9, 6, 3, 2]) + counters(1, 4, 0, [0, 0, 0, 0], engine=1)
    after = counters(15, 60, 30, [14, 9, 5, 2]) + counters(2, 8, 1, [1, 0, 0, 0], engine=1)
    assert of_counters(before, after) == DraftCounts("vLLM /metrics", 24, 11, 6, (6, 3, 2, 0))


def test_llama_cpp_counts_under_its_own_name() -> None:
    before, after = (counters(*each).replace("vllm:", "llamacpp:") for each in ((1, 4, 2, [1, 1]), (3, 10, 7, [3, 4])))
    assert of_counters(before, after) == DraftCounts("llama.cpp /metrics", 6, 5, 2, (2, 3))
    assert of_counters("", after.replace("llamacpp:", "other:")) is None


def test_counters_that_are_missing_or_began_anew_say_nothing() -> None:
    assert of_counters("", "vllm:generation_tokens_total 3.0\n") is None
    assert of_counters(counters(10, 40, 20, [20]), counters(2, 8, 4, [4])) is None
    # A server's counters appear with its first request.
    assert of_counters("", counters(2, 8, 4, [2, 2])) == DraftCounts("vLLM /metrics", 8, 4, 2, (2, 2))


def test_sglang_says_it_under_each_versions_names() -> None:
    assert of_answer(answer(meta_info=SGLANG)) == DraftCounts("SGLang meta_info", 100, 74, 25)
    newer = {"spec_verify_ct": 25, "spec_num_correct_drafts": 74, "spec_num_proposed_drafts": 100}
    between = {"spec_verify_ct": 25, "spec_accepted_drafts": 74, "spec_proposed_drafts": 100}
    assert (
        of_answer(answer(meta_info=newer))
        == of_answer(answer(meta_info=between))
        == of_answer(answer(meta_info=SGLANG))
    )
    # Half a pair is no count.
    halves = {"spec_num_correct_drafts": 3, "spec_accept_token_num": 74, "spec_draft_token_num": 100}
    assert of_answer(answer(meta_info=halves)) == DraftCounts("SGLang meta_info", 100, 74)
    assert of_answer(answer(meta_info={"spec_verify_ct": 25})) == DraftCounts("SGLang meta_info", None, None, 25)
    assert of_answer(answer(meta_info={"completion_tokens": 100})) is None


def test_llama_cpp_says_it_in_its_timings() -> None:
    timings = {"predicted_n": 16, "predicted_ms": 4.0, "draft_n": 12, "draft_n_accepted": 9}
    found = of_answer(answer(timings=timings))
    assert found == DraftCounts("llama.cpp timings", 12, 9)
    assert found.metrics() == {"accept/draft_rate": 0.75}
    assert of_answer(answer(timings={"predicted_n": 16})) is None


def test_a_server_of_this_project_says_it_in_its_usage() -> None:
    usage = {"completion_tokens": 9, "drafted": 8, "accepted": 6, "target_calls": 3}
    assert of_answer(answer(usage=usage)) == DraftCounts("usage", 8, 6, num_calls=3)
    assert of_answer(answer(usage={"completion_tokens": 9})) is None
    assert of_answer(answer()) is None


def test_sums_keep_what_every_answer_says() -> None:
    one, two = DraftCounts("x", 4, 2, 1, (1, 1)), DraftCounts("x", 8, 5, None, (2, 2, 1))
    assert total([one, two]) == DraftCounts("x", 12, 7, None, (3, 3, 1))
    assert total([]) is None


def test_counts_that_cannot_be_true_are_told() -> None:
    # 4 drafts a round; 20 tokens: 1 of the prompt's call, and 19 of 5 rounds that accepted 14.
    true = DraftCounts("x", 20, 14, 5, (5, 4, 3, 2))
    assert true.faults(20) == []
    doubled = DraftCounts("x", 20, 28, 5, (10, 8, 6, 4))
    assert len(doubled.faults(20)) == 3
    assert "28 of 20 drafted" in doubled.faults(20)[0]
    assert "33 tokens or more, but the outputs have 20" in doubled.faults(20)[1]
    assert "10 accepted tokens in 5 rounds" in doubled.faults(20)[2]
    by_position = DraftCounts("x", 20, 14, 5, (5, 4, 3, 1))
    assert by_position.faults(20) == ["14 tokens are counted as accepted, but 13 by position."]
    # The last round may lose all its tokens at the end of each output, and no more.
    assert true.faults(14) == []
    assert len(true.faults(13)) == 1
    assert true.faults(13, num_outputs=2) == []


def test_doubled_acceptance_is_told_below_one_half_too() -> None:
    # 100 tokens of 60 calls with 4 drafts each, of which 40 were accepted; all calls are known.
    assert DraftCounts("usage", 240, 40, num_calls=60).faults(100) == []
    (fault,) = DraftCounts("usage", 240, 80, num_calls=60).faults(100)
    assert fault == "80 accepted tokens in 60 calls are 140 tokens or more, but the outputs have 100."
    (fault,) = DraftCounts("usage", 240, 20, num_calls=60).faults(100)
    assert "80 tokens at most, but the outputs have 100" in fault
    # Drafts of one length: a last round loses 4 tokens and one more.
    assert DraftCounts("SGLang meta_info", 240, 45, 60).faults(100) == []
    assert len(DraftCounts("SGLang meta_info", 240, 80, 60).faults(100)) == 1
    # Without calls or rounds nothing refutes it.
    assert DraftCounts("llama.cpp timings", 240, 80).faults(100) == []
    assert not DraftCounts("llama.cpp timings", 240, 80).can_be_refuted
