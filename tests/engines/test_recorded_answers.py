"""Answers in the forms that vLLM and SGLang document are read whole, and what they refuse is not asked for again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_engine import Reply, fake_engine
from specexp.engines.acceptance import DraftCounts, of_answer, of_counters
from specexp.engines.body import Sampling, Wanted
from specexp.engines.client import EngineClient, Offer, Refused
from specexp.engines.endpoint import Api, parse_endpoint
from specexp.engines.stream import Answer

DATA = Path(__file__).resolve().parents[1] / "data/engine_answers"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def recorded(name: str) -> Reply:
    """The stream of a file; its last event is [DONE], which the helper sends itself."""
    *events, last = [event.removeprefix("data: ") for event in (DATA / name).read_text().split("\n\n") if event.strip()]
    assert last == "[DONE]"
    return Reply([json.loads(event) for event in events])


def refusal(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def answer_of(name: str, api: Api = "completions") -> Answer:
    with fake_engine(recorded(name)) as engine:
        endpoint = parse_endpoint({"url": engine.url, "model": "org/target", "api": api})
        prompt: str | list[dict[str, str]] = [{"role": "user", "content": "x"}] if api == "chat" else "x"
        with EngineClient(endpoint) as client:
            return client.ask(prompt, Sampling(8), Wanted(top_logprobs=2))


def test_a_completion_of_vllm_has_ids_log_probabilities_and_its_own_counts() -> None:
    answer = answer_of("vllm_completions.sse")
    assert (answer.text, answer.finish_reason) == (" 42 é\n", "stop")
    assert (answer.token_ids, answer.prompt_ids) == ([220, 17, 4046, 198, 128009], [128000, 791, 2694])
    assert answer.logprobs == [-0.105, -0.02, -1.25, -0.7, -0.001]
    assert answer.top_logprobs[0] == {" 4": -0.105, " 5": -2.5}
    assert (answer.num_tokens, answer.num_prompt_tokens, answer.num_chunks) == (5, 3, 3)
    counts = of_answer(answer)
    assert counts == DraftCounts("vLLM metrics", 8, 3, 2, (2, 1, 0, 0))
    assert counts.metrics()["accept/mean_length"] == 2.5  # as vLLM itself has it
    assert counts.metrics()["accept/draft_rate"] == 0.375
    assert counts.faults(5) == []


def test_a_chat_of_vllm_has_its_prompts_ids_at_the_top() -> None:
    answer = answer_of("vllm_chat.sse", "chat")
    assert (answer.text, answer.token_ids) == ("42 .", [2983, 662])
    assert answer.prompt_ids == [128000, 128006, 882]
    assert (answer.logprobs, answer.top_logprobs[0]) == ([-0.25, -0.5], {"42": -0.25, "The": -1.5})
    assert (answer.finish_reason, answer.num_tokens, answer.num_chunks) == ("length", 2, 2)
    assert of_answer(answer) is None


def test_counters_of_vllm() -> None:
    text = (DATA / "vllm_metrics.txt").read_text()
    assert of_counters("", text) == DraftCounts("vLLM /metrics", 129, 10, 43, (4, 3, 3))
    more = text.replace("} 43.0", "} 45.0").replace("} 129.0", "} 135.0").replace("} 10.0", "} 12.0")
    more = more.replace('position="0"} 4.0', 'position="0"} 6.0')
    assert of_counters(text, more) == DraftCounts("vLLM /metrics", 6, 2, 2, (2, 0, 0))


def test_a_completion_of_sglang_has_ids_and_no_counts_of_drafts() -> None:
    answer = answer_of("sglang_completions.sse")
    assert (answer.text, answer.token_ids, answer.prompt_ids) == (" 42\n", [220, 17, 198, 2], [1, 791, 2694])
    assert (answer.logprobs, answer.num_tokens) == ([-0.105, -0.02, -0.7, -0.001], 4)
    assert of_answer(answer) is None


def offer_of(refused: Sequence[str], error: Any, answer: Reply) -> tuple[Offer, int]:
    with fake_engine(answer, refused=refused, refusal=error) as engine:
        endpoint = parse_endpoint({"url": engine.url, "model": "org/target", "api": "chat"})
        with EngineClient(endpoint) as client:
            offer = client.offer([{"role": "user", "content": "x"}], Wanted(top_logprobs=1))
            return offer, len(engine.requests)


def test_a_chat_of_sglang_refuses_what_it_does_not_stream_and_gives_the_rest() -> None:
    error = refusal("sglang_chat_refusal.json")
    offer, _ = offer_of(("return_token_ids", "return_meta_info"), error, recorded("sglang_chat.sse"))
    assert offer.wanted == Wanted(False, 1, True, meta_info=False)
    assert (offer.token_ids, offer.logprobs, offer.num_tokens) == (False, True, True)  # an EOS has no entry there
    assert offer.text == "42"


def test_a_whole_chat_of_sglang_has_the_counts() -> None:
    choice = refusal("sglang_chat.json")["choices"][0]
    counts = of_answer(Answer(server={"meta_info": choice["meta_info"]}))
    assert counts == DraftCounts("SGLang meta_info", 100, 74, 25, (23, 22, 20, 9))
    assert counts.faults(100) == []


def test_a_refusal_of_vllm_is_told_in_its_words() -> None:
    error = refusal("vllm_refusal.json")
    with (
        fake_engine(Reply(status=400, error=error)) as engine,
        EngineClient(parse_endpoint({"url": engine.url, "model": "m"})) as client,
        pytest.raises(Refused, match="`prompt_logprobs` are not available when `stream=True`"),
    ):
        client.ask("x", Sampling(1), Wanted())
