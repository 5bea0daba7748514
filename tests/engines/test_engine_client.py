"""Answers of every form are read, transient failures are tried again a few times, and the key stays in the header."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from helpers.fake_engine import FakeEngine, Reply, fake_engine, text_chunk, usage_chunk
from specexp.engines.body import ALL_OFF, Sampling, Wanted
from specexp.engines.client import ATTEMPTS, EngineClient, Refused
from specexp.engines.endpoint import Api, parse_endpoint
from specexp.engines.stream import Answer, Interrupted, Reader
from specexp.errors import EngineError

VLLM = Reply(
    (
        text_chunk("a", token_ids=[5], prompt_token_ids=[1, 2, 3]),
        text_chunk("bc", token_ids=[6, 7]),
        text_chunk("", "length", token_ids=[]),
        usage_chunk(3),
    )
)
SHORT = Sampling(3)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Asking:
    """A client of a fake engine, and how long it waited between attempts."""

    def __init__(self, engine: FakeEngine, api: Api = "completions", **more: Any) -> None:
        self.waits: list[float] = []
        self.ticks = 0
        endpoint = parse_endpoint({"url": engine.url, "model": "m", "api": api, **more})
        self.client = EngineClient(endpoint, self.waits.append, self._tick)

    def _tick(self) -> float:
        self.ticks += 1
        return float(self.ticks)

    def ask(self, sampling: Sampling = SHORT, wanted: Wanted | None = None) -> Answer:
        prompt = [{"role": "user", "content": "x"}] if self.client.endpoint.api == "chat" else "x"
        with self.client:
            return self.client.ask(prompt, sampling, wanted or Wanted())


def test_ids_texts_counts_and_times_are_read() -> None:
    with fake_engine(VLLM) as engine:
        answer = Asking(engine).ask()
    assert (answer.text, answer.token_ids, answer.prompt_ids) == ("abc", [5, 6, 7], [1, 2, 3])
    assert (answer.finish_reason, answer.num_tokens, answer.num_prompt_tokens) == ("length", 3, 3)
    # The clock ticks once a reading: at the start 1, at the chunks 2 to 5, at the end 6.
    assert (answer.first_seconds, answer.last_seconds, answer.seconds) == (1.0, 2.0, 5.0)
    assert answer.seconds_per_token == 0.5
    assert (answer.num_chunks, answer.attempts, answer.checkable) == (2, 1, "token ids")
    assert engine.paths == ["/v1/completions"]
    assert engine.requests[0]["stream"] is True


def test_text_with_unusual_line_ends_arrives_whole() -> None:
    text = "a\u2028b\x85c\u2029d\né"
    with fake_engine(Reply((text_chunk(text, "stop"),))) as engine:
        assert Asking(engine).ask().text == text


def test_text_alone_is_no_ids() -> None:
    with fake_engine(Reply((text_chunk("a"), text_chunk("b", "stop")))) as engine:
        answer = Asking(engine).ask()
    assert (answer.text, answer.token_ids, answer.logprobs, answer.num_tokens) == ("ab", None, None, None)
    assert (answer.checkable, answer.seconds_per_token) == ("text", None)


def test_ids_of_some_tokens_only_count_as_none() -> None:
    with fake_engine(Reply((text_chunk("a", token_ids=[5]), text_chunk("bc", "length"), usage_chunk(3)))) as engine:
        assert Asking(engine).ask().token_ids is None


def test_an_eos_that_is_counted_may_have_no_id() -> None:
    with fake_engine(Reply((text_chunk("a", "stop", token_ids=[5]), usage_chunk(2)))) as engine:
        assert Asking(engine).ask().token_ids == [5]


def test_chat_gives_text_and_log_probabilities_and_llama_cpp_ids_in_them() -> None:
    def chunk(text: str, token: int, finish: str | None = None) -> dict[str, Any]:
        top = [{"token": text, "logprob": -0.5}, {"token": "z", "logprob": -2.0}]
        entry = {"id": token, "token": text, "logprob": -0.5, "top_logprobs": top}
        return {"choices": [{"delta": {"content": text}, "logprobs": {"content": [entry]}, "finish_reason": finish}]}

    begin = {"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    with fake_engine(Reply((begin, chunk("a", 5), chunk("b", 6, "stop")))) as engine:
        answer = Asking(engine, "chat").ask(wanted=Wanted(False, 2))
    assert (answer.text, answer.token_ids, answer.logprobs) == ("ab", [5, 6], [-0.5, -0.5])
    assert answer.top_logprobs[1] == {"b": -0.5, "z": -2.0}
    assert answer.num_chunks == 2
    assert engine.paths == ["/v1/chat/completions"]


def test_completions_log_probabilities_are_read() -> None:
    given = {"tokens": ["a", "b"], "token_logprobs": [-0.1, -0.2], "top_logprobs": [{"a": -0.1}, {"b": -0.2}]}
    with fake_engine(Reply((text_chunk("ab", "length", logprobs=given),))) as engine:
        answer = Asking(engine).ask()
    assert (answer.logprobs, answer.top_logprobs) == ([-0.1, -0.2], [{"a": -0.1}, {"b": -0.2}])
    assert answer.num_tokens == 2


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    busy = Reply(status=429, error={"error": {"message": "full"}}, headers={"Retry-After": "7"})
    with fake_engine(busy, Reply(status=503, error={"detail": "loading"}), VLLM) as engine:
        asking = Asking(engine)
        answer = asking.ask()
    assert answer.attempts == 3
    assert answer.text == "abc"
    assert asking.waits == [7.0, 1.0]


def test_a_wait_has_an_upper_limit() -> None:
    with fake_engine(Reply(status=429, error={}, headers={"Retry-After": "90000"}), VLLM) as engine:
        asking = Asking(engine)
        asking.ask()
    assert asking.waits == [30.0]


def test_an_answer_cut_in_its_middle_is_asked_for_anew() -> None:
    cut = Reply((text_chunk("wrong", token_ids=[9]),), complete=False)
    failed = Reply((text_chunk("wrong", token_ids=[9]), {"error": {"message": "engine died"}}))
    died = Reply((text_chunk("wrong", token_ids=[9]),), complete=False, missing=10)
    with fake_engine(cut, failed, died, VLLM) as engine:
        answer = Asking(engine).ask()
    assert (answer.text, answer.token_ids, answer.attempts) == ("abc", [5, 6, 7], 4)
    assert all(request == engine.requests[0] for request in engine.requests)
    assert len(engine.requests) == 4


def test_attempts_are_bounded() -> None:
    with fake_engine(Reply((text_chunk("a"),), complete=False)) as engine:
        asking = Asking(engine)
        with pytest.raises(Interrupted, match="ended in the middle"):
            asking.ask()
    assert len(engine.requests) == ATTEMPTS
    assert asking.waits == [0.5, 1.0, 2.0, 4.0]


def test_nobody_at_the_address_is_one_message() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        asking = Asking(FakeEngine([], url=url))
        with pytest.raises(EngineError, match=f"engine {url}/v1: .*then resume"):
            asking.ask()
    assert len(asking.waits) == ATTEMPTS - 1


@pytest.mark.parametrize(("status", "said"), [(401, "check the key in MY_KEY"), (400, "leave out"), (418, "the url")])
def test_other_statuses_are_told_at_once_without_the_key(
    status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "s3cret" * 20  # longer than what a message shows of a text
    monkeypatch.setenv("MY_KEY", key)
    with fake_engine(Reply(status=status, error={"error": {"message": f"not with {key}"}})) as engine:
        asking = Asking(engine, key_env="MY_KEY")
        with pytest.raises(EngineError, match=said) as caught:
            asking.ask()
    assert engine.keys == [f"Bearer {key}"]
    assert "s3cret" not in str(caught.value)
    assert "not with ***" in str(caught.value)
    assert not asking.waits


def test_what_is_no_stream_is_told_at_once() -> None:
    with fake_engine(Reply((text_chunk("a", "stop"),), content_type="text/html")) as engine:
        with pytest.raises(EngineError, match="'text/html'"):
            Asking(engine).ask()
        assert len(engine.requests) == 1


def test_a_server_that_refuses_fields_is_asked_for_less() -> None:
    refused = ("return_token_ids", "stream_options")
    with fake_engine(Reply((text_chunk("a", "stop"),)), refused=refused) as engine, Asking(engine).client as client:
        offer = client.offer("x", Wanted(True, 2, True))
    assert offer.wanted == Wanted(False, 2, False, False)
    assert (offer.token_ids, offer.logprobs, offer.num_tokens) == (False, False, False)
    assert offer.words() == "the server gives text, but no token ids and no log-probabilities"
    assert len(engine.requests) == 5


def test_a_validation_error_is_a_refusal_by_whatever_status_it_comes() -> None:
    """llama-cpp-python's server sends it with status 500, which else means to ask again."""
    said = "1 validation error:\n  {'type': 'greater_than_equal', 'loc': ('body', 'top_k')}"
    with fake_engine(Reply(status=500, error={"error": {"message": said}})) as engine:
        with pytest.raises(Refused, match="1 validation error"):
            Asking(engine).ask()
        assert len(engine.requests) == 1


def test_of_what_single_servers_know_each_is_left_out_by_itself() -> None:
    """Top-k is said where min-p and `verbose` are refused; what sampling sets is said instead of what turns it off."""
    with (
        fake_engine(Reply((text_chunk("a", "stop"),)), refused=("min_p", "verbose")) as engine,
        Asking(engine).client as client,
    ):
        offer = client.offer("x", Wanted(verbose=True, off=ALL_OFF))
        assert offer.wanted == Wanted(off=(("top_p", 1.0), ("top_k", -1)))
        client.ask("x", Sampling(1, 0.5, top_k=3), offer.wanted)
    said = engine.requests[-1]
    assert (said["top_p"], said["top_k"]) == (1.0, 3)
    assert "min_p" not in said


def test_llama_cpps_ids_come_with_accepted_drafts_too() -> None:
    """Its log-probabilities lack accepted drafts, so that ids among them are not all."""
    entry = {"id": 5, "token": " a", "logprob": -0.5, "top_logprobs": [{"id": 5, "token": " a", "logprob": -0.5}]}
    first = {**text_chunk(" a", logprobs={"content": [entry]}), "__verbose": {"tokens": [5]}}
    drafted = {**text_chunk(" b", logprobs=None), "__verbose": {"tokens": [7]}}
    end = {**text_chunk("", "length"), **usage_chunk(2), "__verbose": {"tokens": []}}
    end["choices"] = text_chunk("", "length")["choices"]
    with fake_engine(Reply((first, drafted, end))) as engine:
        answer = Asking(engine).ask(wanted=Wanted(verbose=True))
    assert engine.requests[0]["verbose"] is True
    assert answer.token_ids == [5, 7]
    assert answer.logprobs is None


def test_a_sampling_that_is_refused_is_not_left_out() -> None:
    with fake_engine(VLLM, refused=("min_p",)) as engine:
        with pytest.raises(Refused, match="unknown field min_p"):
            Asking(engine).ask(Sampling(3, 0.5, min_p=0.1))
        assert len(engine.requests) == 1


def test_models_and_counters_are_optional() -> None:
    with fake_engine(VLLM, metrics=["a 1\n"]) as engine, Asking(engine).client as client:
        assert client.models() == ["m", "n"]
        engine.models = []  # status 500
        assert client.models() == []
        assert (client.counters(), client.counters()) == ("a 1\n", "")
    assert engine.paths == ["/v1/models", "/v1/models", "/metrics", "/metrics"]


def test_an_error_in_a_stream_shows_no_key() -> None:
    reader = Reader(lambda text: text.replace("s3cret", "***"))
    with pytest.raises(Interrupted, match=r"'\*\*\* failed'"):
        reader.add({"error": {"message": "s3cret failed"}}, 1.0)
