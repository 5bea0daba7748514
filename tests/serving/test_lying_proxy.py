"""The proxy plants each bug as it says, and no other: what it does is compared with what the server behind it does."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.lying_proxy import BUGS, LyingProxy, lying, warped
from helpers.openai_process import in_thread
from specexp.api import LoadedPair
from specexp.config import single
from specexp.serving.completion_service import CompletionService, ServiceLimits
from specexp.serving.openai_app import make_app
from specexp.tasks.task import task

PROMPT = task("arith").examples(1)[0].turns[0]
SAMPLED: dict[str, Any] = {"prompt": PROMPT, "temperature": 1, "seed": 5, "max_tokens": 20, "return_token_ids": True}


@pytest.fixture(scope="module")
def service() -> CompletionService:
    asked = single.resolve("arith_quick", "speculative", {"gamma": "4"})
    return CompletionService(LoadedPair(asked), asked, ServiceLimits(8, 100, 200), "arith")


@pytest.fixture(scope="module")
def address(service: CompletionService) -> Iterator[str]:
    with in_thread(make_app(service)) as result:
        yield result


def post(address: str, body: dict[str, Any], path: str = "/v1/completions") -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        result: dict[str, Any] = json.load(response)
        return result


def both(address: str, bug: str, body: dict[str, Any], amount: float = 0.0, **more: Any) -> tuple[Any, Any, LyingProxy]:
    """The first choice of the server's answer, and of the proxy's."""
    proxy = LyingProxy(address, bug, amount, **more)
    with lying(proxy) as lies:
        return post(address, body)["choices"][0], post(lies, body)["choices"][0], proxy


def test_without_a_bug_nothing_is_changed(address: str) -> None:
    with lying(LyingProxy(address)) as lies:
        for body in (SAMPLED, {"prompt": [PROMPT, PROMPT], "n": 2, "temperature": 0, "max_tokens": 5}):
            truth, told = post(address, body), post(lies, body)
            assert (told["choices"], told["usage"].keys()) == (truth["choices"], truth["usage"].keys())
        chat = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 5}
        path = "/v1/chat/completions"
        assert post(lies, chat, path)["choices"] == post(address, chat, path)["choices"]
        with pytest.raises(urllib.error.HTTPError) as error:
            post(lies, {"prompt": PROMPT, "n": "x"})
        assert error.value.code == 400
        error.value.close()
        request = urllib.request.Request(
            f"{lies}/v1/completions", json.dumps({**SAMPLED, "stream": True}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=120) as response:
            chunk, done = [line[6:] for line in response.read().decode().split("\n\n") if line]
        assert json.loads(chunk)["choices"] == post(address, SAMPLED)["choices"]
        assert done == "[DONE]"


@pytest.mark.parametrize(
    "bug, amount, asked, like",
    [
        ("temperature_dropped", 0, {"temperature": 0.3}, {"temperature": 1}),
        ("greedy_above", 0.5, {"temperature": 0.7}, {"temperature": 0}),
        ("greedy_above", 0.5, {"temperature": 0.4}, {"temperature": 0.4}),
        ("eos_swallowed", 0, {"temperature": 0, "max_tokens": 150}, {"ignore_eos": True}),
    ],
    ids=str,
)
def test_the_answer_is_that_of_another_request(
    address: str, bug: str, amount: float, asked: dict[str, Any], like: dict[str, Any]
) -> None:
    body = {**SAMPLED, **asked}
    truth, told, _ = both(address, bug, body, amount)
    assert told == post(address, {**body, **like})["choices"][0]
    assert (told != truth) == (asked != like)


def test_a_seed_is_ignored(address: str) -> None:
    with lying(LyingProxy(address, "seed_ignored")) as lies:
        texts = {post(lies, SAMPLED)["choices"][0]["text"] for _ in range(5)}
    assert len(texts) > 1
    assert len({post(address, SAMPLED)["choices"][0]["text"] for _ in range(3)}) == 1


def test_a_stop_string_is_leaked(address: str) -> None:
    truth, told, proxy = both(address, "stop_leaked", {"prompt": PROMPT, "temperature": 0, "stop": ["is", "no such"]})
    assert told["text"] == f"{truth['text']}is"
    assert proxy.num_planted == 1
    truth, told, proxy = both(address, "stop_leaked", {"prompt": PROMPT, "temperature": 0})
    assert told["text"] == truth["text"]
    assert proxy.num_planted == 0


def test_acceptance_is_doubled_in_usage_and_metrics(address: str, service: CompletionService) -> None:
    with lying(LyingProxy(address, "acceptance_doubled")) as lies:
        body = {"prompt": PROMPT, "temperature": 0}
        truth, told = post(address, body)["usage"], post(lies, body)["usage"]
        assert told == {**truth, "accepted": 2 * truth["accepted"]}
        with urllib.request.urlopen(f"{lies}/metrics") as response:
            lines = response.read().decode().splitlines()
    name = "vllm:spec_decode_num_accepted_tokens_total{"
    (value,) = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)]
    text = service.metrics.text().decode().splitlines()
    (own,) = [float(line.rsplit(" ", 1)[1]) for line in text if line.startswith(name)]
    assert value == 2 * own > 0


def test_one_token_in_so_many_is_replaced_and_the_output_goes_on_from_it(address: str) -> None:
    proxy = LyingProxy(address, "token_replaced", 7)
    body = {**SAMPLED, "temperature": 0, "max_tokens": 20, "ignore_eos": True}
    with lying(proxy) as lies:
        truth = post(address, body)["choices"][0]["token_ids"]
        told = [post(lies, body)["choices"][0]["token_ids"] for _ in range(2)]
    # The 7th token of the first answer; the second begins after 20, so that its first is the 21st.
    assert [next(i for i in range(20) if each[i] != truth[i]) for each in told] == [6, 0]
    assert all(len(each) == 20 for each in told)
    after = post(address, {**body, "prompt": [*_ids(address), *told[0][:7]], "max_tokens": 13})
    assert after["choices"][0]["token_ids"] == told[0][7:]
    assert proxy.num_planted == 2


def _ids(address: str) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": 1, "return_token_ids": True}
    ids: list[int] = post(address, body)["choices"][0]["prompt_token_ids"]
    return ids


def test_the_texts_of_planted_tokens_fit_the_tokens(address: str, service: CompletionService) -> None:
    for bug, amount in (("token_replaced", 5), ("bias", 0.6)):
        _, told, _ = both(address, bug, SAMPLED, amount)
        ends = service.eos_ids
        assert told["text"] == service.text.decode([token for token in told["token_ids"] if token not in ends])


def test_warping_is_that_of_the_field_and_top_p_first_is_another() -> None:
    top = {token: math.log(p) for token, p in enumerate((0.5, 0.3, 0.15, 0.05))}
    assert warped(top, {"temperature": 1, "top_p": 0.75}) == pytest.approx({0: 5 / 8, 1: 3 / 8})
    squares = [0.25, 0.09, 0.0225, 0.0025]
    assert warped(top, {"temperature": 0.5}) == pytest.approx({i: p / sum(squares) for i, p in enumerate(squares)})
    assert warped(top, {"temperature": 0.5, "top_p": 0.65}) == pytest.approx({0: 1})
    first = warped(top, {"temperature": 0.5, "top_p": 0.65}, top_p_first=True)
    assert first == pytest.approx({0: 0.25 / 0.34, 1: 0.09 / 0.34})
    assert warped(top, {"temperature": 1, "top_k": 1}) == {0: 1}


@pytest.mark.parametrize(
    "amount, num",
    [pytest.param(0.2, 640, marks=pytest.mark.nightly), pytest.param(0.05, 4000, marks=pytest.mark.nightly)],
)
def test_the_bias_is_as_large_as_it_says(address: str, amount: float, num: int) -> None:
    """Of the first token: within four standard errors of its exact share, and not of that without the bias."""
    body = {"prompt": PROMPT, "temperature": 1, "max_tokens": 1, "return_token_ids": True}
    proxy = LyingProxy(address, "bias", amount)
    p = warped(proxy._top(_ids(address), {"Content-Type": "application/json"}), body)
    runner_up = list(p)[1]
    counts: Counter[int] = Counter()
    for seed in range(0, num, 16):
        asked = {**body, "n": 16, "seed": seed}
        answer = proxy.answer("/v1/completions", asked, {"Content-Type": "application/json"})
        counts.update(choice["token_ids"][0] for choice in answer["choices"])
    expected = p[runner_up] + amount
    error = math.sqrt(expected * (1 - expected) / num)
    assert abs(counts[runner_up] / num - expected) < 4 * error < amount
    assert sum(counts.values()) == num


@pytest.mark.slow
def test_top_p_first_keeps_tokens_that_the_right_order_drops(address: str, service: CompletionService) -> None:
    body = {"prompt": PROMPT, "temperature": 0.5, "top_p": 0.6, "max_tokens": 12, "return_token_ids": True}
    proxy = LyingProxy(address, "top_p_first", eos=frozenset(service.eos_ids))
    headers = {"Content-Type": "application/json"}
    for seed in range(10):
        tokens = proxy.answer("/v1/completions", {**body, "seed": seed}, headers)["choices"][0]["token_ids"]
        ids = _ids(address)
        for i, token in enumerate(tokens):
            assert token in warped(proxy._top([*ids, *tokens[:i]], headers), body, top_p_first=True)
    assert proxy.num_planted == 10


def test_every_bug_has_a_test() -> None:
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    assert all(f'"{bug}"' in text for bug in BUGS if bug != "none")
