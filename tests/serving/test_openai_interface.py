"""The OpenAI interface: `generate`'s tokens in every form, a reason for every bad request, and bounds that hold."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import specexp
from specexp.config import single
from specexp.engine.request import ScoreRequest, single_request
from specexp.metrics.before_end import before_end, rounds_by_accepted
from specexp.serving import openai_app
from specexp.serving.choices import Choice
from specexp.serving.completion_service import CompletionService, ServiceLimits
from specexp.serving.openai_app import make_app
from specexp.serving.openai_requests import read_request
from specexp.serving.refusals import Refusal
from specexp.tasks.task import task

PROMPTS = [example.turns[0] for example in task("arith").examples(3)]
SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [  # as a request has it, and as `generate` has it
    ({}, {}),
    ({"temperature": 1, "seed": 3, "max_tokens": 12}, {"temperature": 1.0, "seed": 3, "max_new_tokens": 12}),
    ({"temperature": 0.7, "top_k": 5, "seed": 4}, {"temperature": 0.7, "top_k": 5, "seed": 4}),
    ({"temperature": 1, "top_p": 0.8, "seed": 5, "max_completion_tokens": 9},
     {"temperature": 1.0, "top_p": 0.8, "seed": 5, "max_new_tokens": 9}),
    ({"max_tokens": 90, "ignore_eos": True, "top_k": -1}, {"max_new_tokens": 90, "ignore_eos": True}),
    ({"min_tokens": 100, "max_tokens": 120}, {"min_new_tokens": 100, "max_new_tokens": 120}),
    ({"stop": ["is", "no such"]}, {"stop": ["is", "no such"]}),
]  # fmt: skip
REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "context": "length"}


@pytest.fixture(scope="module")
def pair() -> specexp.LoadedPair:
    return specexp.load("arith_quick", gamma=4)


def service_of(rows: int = 4, max_waiting: int = 60) -> CompletionService:
    asked = single.resolve("arith_quick", "speculative", {"gamma": "4"})
    return CompletionService(specexp.LoadedPair(asked), asked, ServiceLimits(rows, max_waiting, 200), "arith")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(service_of())) as result:
        yield result


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def events(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end as streams end."""
    response = client.post(f"/v1/{path}", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, last = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


def usage_of(outs: Sequence[specexp.Output], num_prompt: int) -> dict[str, int]:
    ends = [before_end(out.counts) for out in outs]
    num_tokens = sum(len(out.token_ids) for out in outs)
    return {
        "prompt_tokens": num_prompt, "completion_tokens": num_tokens, "total_tokens": num_prompt + num_tokens,
        "accepted": sum(accepted for accepted, _ in ends), "drafted": sum(drafted for _, drafted in ends),
        "rounds": sum(sum(rounds_by_accepted(out.counts)) for out in outs),
        "target_calls": sum(out.counts["num_target_calls"] for out in outs),
    }  # fmt: skip


@pytest.mark.at_most(fast=3)
@pytest.mark.parametrize("given, asked", SAMPLING, ids=str)
def test_answers_are_those_of_generate(
    client: TestClient, pair: specexp.LoadedPair, given: dict[str, Any], asked: dict[str, Any]
) -> None:
    outs = [pair.generate(prompt, **asked) for prompt in PROMPTS]
    answer = post(client, "completions", prompt=PROMPTS, return_token_ids=True, **given)
    assert [choice["text"] for choice in answer["choices"]] == [out.text for out in outs]
    assert [choice["token_ids"] for choice in answer["choices"]] == [out.token_ids for out in outs]
    assert [choice["finish_reason"] for choice in answer["choices"]] == [REASONS[out.finish_reason] for out in outs]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    num_prompt = sum(len(choice["prompt_token_ids"]) for choice in answer["choices"])
    assert answer["usage"] == usage_of(outs, num_prompt)
    assert (answer["object"], answer["model"]) == ("text_completion", "arith")
    chat = post(client, "chat/completions", messages=[{"role": "user", "content": PROMPTS[0]}], **given)
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": outs[0].text}
    assert chat["object"] == "chat.completion"


@pytest.mark.parametrize("given, asked", [SAMPLING[0], SAMPLING[4], SAMPLING[6]], ids=str)
def test_a_stream_is_the_answer_in_pieces(
    client: TestClient, pair: specexp.LoadedPair, given: dict[str, Any], asked: dict[str, Any]
) -> None:
    out = pair.generate(PROMPTS[0], **asked)
    options = {"include_usage": True}
    *chunks, last = events(client, "completions", prompt=PROMPTS[0], stream_options=options, return_token_ids=True,
                           **given)  # fmt: skip
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == out.text
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == out.token_ids
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [
        *[None] * (len(chunks) - 1), REASONS[out.finish_reason],
    ]  # fmt: skip
    assert len(chunks) > 2
    assert all(chunk["usage"] is None and chunk["id"] == last["id"] for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], usage_of([out], last["usage"]["prompt_tokens"]))
    opening, *rest = events(client, "chat/completions", messages=[{"role": "user", "content": PROMPTS[0]}], **given)
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in rest) == out.text
    assert not any("usage" in chunk for chunk in rest)


def test_a_conversation_and_its_forms(client: TestClient, pair: specexp.LoadedPair) -> None:
    talk = [
        {"role": "system", "content": "Add it up."}, {"role": "user", "content": PROMPTS[0]},
        {"role": "assistant", "content": "7"}, {"role": "user", "content": PROMPTS[1]},
    ]  # fmt: skip
    expected = pair.generate(talk).text
    parts = [{"type": "text", "text": PROMPTS[1][:9]}, {"type": "text", "text": PROMPTS[1][9:]}]
    other = [{"role": "developer", "content": "Add it up."}, *talk[1:3], {"role": "user", "content": parts}]
    for messages in (talk, other):
        answer = post(client, "chat/completions", messages=messages)
        assert answer["choices"][0]["message"]["content"] == expected


def test_log_probabilities_are_the_targets(client: TestClient, pair: specexp.LoadedPair) -> None:
    answer = post(client, "completions", prompt=PROMPTS[0], max_tokens=6, logprobs=3, return_token_ids=True,
                  return_tokens_as_token_ids=True, temperature=1, seed=2)["choices"][0]  # fmt: skip
    ids, tokens = answer["prompt_token_ids"], answer["token_ids"]
    logits, _ = pair.engine().score("target", ids, tokens[:-1])
    rows = np.asarray(logits.tolist(), dtype=np.float64)
    rows -= np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True)) + rows.max(-1, keepdims=True)
    result = answer["logprobs"]
    assert result["tokens"] == [f"token_id:{token}" for token in tokens]
    assert result["token_logprobs"] == pytest.approx([rows[i, token] for i, token in enumerate(tokens)], abs=1e-4)
    for i, top in enumerate(result["top_logprobs"]):
        best = np.argsort(-rows[i])[:3]
        expected = {f"token_id:{token}": rows[i, token] for token in [*best, tokens[i]]}
        assert top == pytest.approx(expected, abs=1e-4)


def test_echo_scores_the_prompt_as_the_harness_asks_for_it(client: TestClient) -> None:
    given = {"logprobs": 1, "echo": True, "temperature": 0}
    scored = post(client, "completions", prompt=PROMPTS[0], max_tokens=0, **given)["choices"][0]
    assert (scored["text"], scored["finish_reason"]) == (PROMPTS[0], "length")
    names = scored["logprobs"]["tokens"]
    assert "".join(names) == f"<|bos|>{PROMPTS[0]}"
    assert scored["logprobs"]["token_logprobs"][0] is scored["logprobs"]["top_logprobs"][0] is None
    offsets = scored["logprobs"]["text_offset"]  # the text begins after the BOS
    assert offsets == [0, *(len("".join(names[1:i])) for i in range(1, len(names)))]
    assert all(scored["text"][i:].startswith(name) for i, name in list(zip(offsets, names, strict=True))[1:])
    longer = post(client, "completions", prompt=PROMPTS[0], max_tokens=1, **given)["choices"][0]["logprobs"]
    assert len(longer["tokens"]) == len(names) + 1
    assert longer["token_logprobs"][1:-1] == pytest.approx(scored["logprobs"]["token_logprobs"][1:], abs=1e-4)
    last = longer["top_logprobs"][-1]
    assert longer["tokens"][-1] == max(last, key=last.get)  # the greedy token is the likeliest


def test_log_probabilities_of_a_chat_come_with_bytes_and_in_a_stream_at_its_end(client: TestClient) -> None:
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 5, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    choice = post(client, "chat/completions", **asked)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 5
    assert all(len(each["top_logprobs"]) == 2 for each in content)
    assert b"".join(bytes(each["bytes"]) for each in content).decode() == choice["message"]["content"]
    _, chunk = events(client, "chat/completions", **asked)
    assert chunk["choices"][0]["logprobs"] == choice["logprobs"]
    assert chunk["choices"][0]["delta"]["content"] == choice["message"]["content"]


def test_several_outputs_have_seeds_of_their_own(client: TestClient, pair: specexp.LoadedPair) -> None:
    asked: dict[str, Any] = {"prompt": PROMPTS[0], "temperature": 1, "max_tokens": 20}
    answer = post(client, "completions", n=3, seed=1, **asked)
    texts = [choice["text"] for choice in answer["choices"]]
    expected = [
        pair.generate(PROMPTS[0], temperature=1.0, seed=1, max_new_tokens=20, prompt_id=each).text
        for each in ("", "1", "2")
    ]
    assert texts == expected
    assert len(set(texts)) == 3
    one = post(client, "completions", seed=1, **asked)
    assert answer["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"], "a prompt counts once"
    without = {post(client, "completions", **asked)["choices"][0]["text"] for _ in range(4)}
    assert len(without) > 1, "a request without a seed has one of its own"


def test_speculation_may_be_switched_off(client: TestClient) -> None:
    fast, slow = (post(client, "completions", prompt=PROMPTS[0], speculation=on) for on in (True, False))
    assert fast["choices"] == slow["choices"]
    assert slow["usage"]["drafted"] == 0 < fast["usage"]["drafted"]
    assert fast["usage"]["target_calls"] < slow["usage"]["target_calls"] == slow["usage"]["completion_tokens"]


BAD: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"{", 400, "the body is not JSON"),
    "a list": (b"[]", 400, "the body must be an object"),
    "NaN": (b'{"prompt": "a", "temperature": NaN}', 400, "NaN is not a JSON value"),
    "no prompt": (b"{}", 400, "prompt is missing; it must be a text"),
    "an empty list": (b'{"prompt": []}', 400, "it must be a text, a list of token ids"),
    "mixed prompts": (b'{"prompt": ["a", [1]]}', 400, "it must be a text, a list of token ids"),
    "a blank prompt": (b'{"prompt": ["a", " "]}', 400, "prompt 2: the prompt is empty"),
    "an id out of range": (b'{"prompt": [1, 99999999]}', 400, "the prompt has token id 99999999; ids are from 0 to"),
    "a negative id": (b'{"prompt": [-1]}', 400, "the prompt has token id -1"),
    "an unknown field": (b'{"prompt": "a", "max_token": 3}', 400, "unknown field 'max_token', did you mean"),
    "messages": (b'{"prompt": "a", "messages": []}', 400, "unknown field 'messages'"),
    "a penalty": (b'{"prompt": "a", "presence_penalty": 0.5}', 400, "presence_penalty is 0.5; this server does not"),
    "a bias": (b'{"prompt": "a", "logit_bias": {"1": 5}}', 400, "logit_bias is {'1': 5}; this server does not"),
    "best_of": (b'{"prompt": "a", "best_of": 3}', 400, "best_of is 3; this server does not follow it"),
    "a text as a number": (b'{"prompt": "a", "temperature": "1"}', 400, "temperature is '1'; it must be a number."),
    "true as a number": (b'{"prompt": "a", "max_tokens": true}', 400, "max_tokens is True; it must be a whole number."),
    "no tokens": (b'{"prompt": "a", "max_tokens": 0}', 400, "max_tokens is 0; it must be"),
    "too many tokens": (
        b'{"prompt": "a", "max_tokens": 201}', 400, "max_tokens is 201; this decoder emits at most 200",
    ),
    "two limits": (b'{"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}', 400, "give one of them"),
    "a negative temperature": (b'{"prompt": "a", "temperature": -1}', 400, "temperature is -1; it must be"),
    "too many outputs": (b'{"prompt": "a", "n": 17}', 400, "n is 17; it must be a whole number from 1 to 16."),
    "too many choices": (b'{"prompt": [%s"a"], "n": 16}' % (b'"a",' * 16), 400, "make 272 choices"),
    "too many log-probabilities": (b'{"prompt": "a", "logprobs": 21}', 400, "a whole number from 0 to 20."),
    "options without a stream": (b'{"prompt": "a", "stream_options": {"include_usage": true}}', 400, "without stream"),
    "another model": (b'{"prompt": "a", "model": "gpt"}', 404, "unknown model 'gpt'"),
    "a long prompt": (b'{"prompt": "%s"}' % (b"Mia has 4 apples. " * 300), 400, "context is 512"),
    "a long body": (b'{"prompt": "%s"}' % (b"a" * 20_000_000), 413, "the body has more than"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_are_refused_with_a_reason(client: TestClient, what: str) -> None:
    body, status, reason = BAD[what]
    response = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert reason in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_every_fault_of_a_request_is_named(client: TestClient) -> None:
    body = {"prompt": "a", "n": 0, "logprobs": True, "tools": [1], "x": 2}
    message = client.post("/v1/completions", json=body).json()["error"]["message"]
    assert [line.split(" is ")[0].split(",")[0].split(".")[0] for line in message.splitlines()] == [
        "unknown field 'x'", "tools", "n", "logprobs",
    ]  # fmt: skip


def test_pages_that_are_not_there_have_the_same_form_of_error(client: TestClient) -> None:
    for verb, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        response = client.request(verb, path)
        assert response.status_code == status
        assert path in response.json()["error"]["message"]
    response = client.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("arith", 512)


def test_keys_are_asked_for_below_v1_only(client: TestClient) -> None:
    service = service_of()
    guarded = TestClient(make_app(service, ("one", "two")))
    for header in (None, "Bearer three", "Basic one", "one"):
        headers = {} if header is None else {"Authorization": header}
        response = guarded.get("/v1/models", headers=headers)
        assert response.status_code == 401, header
        assert "the API key is missing or wrong" in response.json()["error"]["message"]
    for key in ("one", "two"):
        assert guarded.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert guarded.get("/health").status_code == guarded.get("/metrics").status_code == 200


def counts_of(service: CompletionService) -> dict[str, float]:
    lines = [line for line in service.metrics.text().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_have_vllms_names_and_the_sums_of_usage() -> None:
    service = service_of()
    client = TestClient(make_app(service))
    usages = [post(client, "completions", prompt=prompt)["usage"] for prompt in PROMPTS]
    result, labels = counts_of(service), 'engine="0",model_name="arith"'
    for name, key in (
        ("prompt_tokens_total", "prompt_tokens"), ("generation_tokens_total", "completion_tokens"),
        ("spec_decode_num_draft_tokens_total", "drafted"), ("spec_decode_num_accepted_tokens_total", "accepted"),
    ):  # fmt: skip
        assert result[f"vllm:{name}{{{labels}}}"] == sum(usage[key] for usage in usages), name
    places = [
        value for name, value in result.items() if name.startswith("vllm:spec_decode_num_accepted_tokens_per_pos_t")
    ]
    assert sum(places) == sum(usage["accepted"] for usage in usages)
    assert places == sorted(places, reverse=True)
    assert len(places) == 4
    assert result[f"vllm:spec_decode_num_drafts_total{{{labels}}}"] >= places[0]
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert result[f"vllm:{name}_count{{{labels}}}"] == 3
    assert result[f"vllm:num_requests_running{{{labels}}}"] == result[f"vllm:num_requests_waiting{{{labels}}}"] == 0


class Held:
    """A choice that is being decoded, and waits in its first round until it is released."""

    def __init__(self, service: CompletionService, **body: Any) -> None:
        self.begun, self.release, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.num_heard = 0
        (self.choice,) = service.prepare(read_request(json.dumps({"prompt": PROMPTS[0], **body}).encode(), False))
        service.submit([self.choice], self._hear)
        assert self.begun.wait(60)

    def _hear(self, choice: Choice, tokens: Sequence[int] | None) -> None:
        self.begun.set()
        if tokens is None:
            self.ended.set()
            return
        self.num_heard += len(tokens)
        assert self.release.wait(60)


def test_a_body_that_does_not_come_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would hold a connection for as long as it likes."""
    monkeypatch.setattr(openai_app, "BODY_SECONDS", 0.01)
    parts = [{"type": "http.request", "body": b'{"prompt": ', "more_body": True}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.sleep(3600)
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/completions",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 408
    assert b"the body did not come within" in sent[1]["body"]


def test_more_than_may_wait_is_refused_until_there_is_space() -> None:
    service = service_of(rows=1, max_waiting=0)
    client, held = TestClient(make_app(service)), Held(service)
    response = client.post("/v1/completions", json={"prompt": PROMPTS[1]})
    assert response.status_code == 429, response.text
    assert response.json()["error"]["code"] == "too_many_requests"
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert counts_of(service)['vllm:num_requests_running{engine="0",model_name="arith"}'] == 1
    held.release.set()
    assert held.ended.wait(60)
    assert post(client, "completions", prompt=PROMPTS[1])["choices"][0]["text"]
    response = client.post("/v1/completions", json={"prompt": PROMPTS[:2]})
    assert response.status_code == 400
    assert "the request makes 2 outputs; 1 may wait at a time" in response.json()["error"]["message"]


def test_a_client_that_goes_ends_its_output() -> None:
    service = service_of(rows=1)
    held = Held(service, max_tokens=200, ignore_eos=True)
    held.choice.cancel()
    held.release.set()
    assert held.choice.future is not None
    out = held.choice.future.result(60).out
    assert held.num_heard <= len(out.token_ids) < 20
    aborted = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="arith"}'
    end = time.monotonic() + 60  # it is counted after its future is done
    while not counts_of(service).get(aborted):
        assert time.monotonic() < end
    assert counts_of(service)[aborted] == 1


def test_an_output_that_has_ended_is_freed_without_a_garbage_collection() -> None:
    """Its tensors would wait for a full collection, which comes after thousands of requests."""
    service = service_of(rows=1)
    gc.collect()
    gc.disable()
    try:
        held = Held(service)
        choice, future = weakref.ref(held.choice), weakref.ref(held.choice.future)
        held.release.set()
        assert held.ended.wait(60)
        del held.choice  # which holds this holder
        held = Held(service)  # the engine keeps the latest request of each row
        held.release.set()
        assert held.ended.wait(60)
        end = time.monotonic() + 30  # the thread that decodes lets go of it last
        while choice() is not None or future() is not None:
            assert time.monotonic() < end, "it is in a cycle"
            time.sleep(0.01)
    finally:
        gc.enable()


def test_closing_tells_those_that_are_not_done() -> None:
    service = service_of(rows=1)
    client, held = TestClient(make_app(service)), Held(service)
    heard: list[Sequence[int] | None] = []
    (waiting,) = service.prepare(read_request(json.dumps({"prompt": PROMPTS[1]}).encode(), False))
    service.submit([waiting], lambda choice, tokens: heard.append(tokens))
    service.cut_off()
    assert heard == [None]
    for choice in (held.choice, waiting):
        with pytest.raises(Refusal, match="the server is shutting down") as error:
            choice.result()
        assert error.value.status == 503
    held.release.set()
    assert client.get("/health").status_code == 503
    response = client.post("/v1/completions", json={"prompt": PROMPTS[1]})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


def test_an_error_of_the_engine_is_told_and_the_server_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from specexp.serving import completion_service

    service = service_of()
    client = TestClient(make_app(service))
    with monkeypatch.context() as patch:
        patch.setattr(completion_service, "token_scores", lambda logits, tokens, num_top: [1 / 0])
        response = client.post("/v1/completions", json={"prompt": PROMPTS[0], "logprobs": 1})
        assert response.status_code == 500
        assert "decoding failed: ZeroDivisionError" in response.json()["error"]["message"]
        stream = client.post("/v1/completions", json={"prompt": PROMPTS[0], "logprobs": 1, "stream": True}).text
        assert "decoding failed: ZeroDivisionError" in json.loads(stream.removeprefix("data: "))["error"]["message"]
    assert post(client, "completions", prompt=PROMPTS[0])["choices"][0]["text"]


@pytest.mark.parametrize("patience, place", [(6, 0), (0, 3)])
def test_scores_do_not_wait_for_outputs_that_go_on(patience: int, place: int) -> None:
    toy = specexp.load("toy_quick")
    asked = replace(single.resolve("toy_quick", "baseline", {}), max_new_tokens=60, ignore_eos=True)
    jobs = [single_request(toy.request(f"prompt {i}", asked)) for i in range(3)]
    engine = toy.engine(max_batch_size=4, score_patience=patience)
    ends = [index for index, _ in engine.run_all([*jobs, single_request(ScoreRequest("target", [1, 2], [3]))])]
    assert ends.index(3) == place
    assert sorted(ends) == [0, 1, 2, 3]
