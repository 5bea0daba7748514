"""The setting `engine`: every fault at once, and a key that is in no message."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from specexp.engines.body import Sampling, Wanted, body_of
from specexp.engines.endpoint import Endpoint, parse_endpoint
from specexp.errors import ConfigError, EngineError

GIVEN = {"url": "http://host:8000/", "model": "m"}


def test_an_address_ends_in_v1_however_it_is_given() -> None:
    for url in ("http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"):
        endpoint = parse_endpoint({"url": url, "model": "m"})
        assert (endpoint.url, endpoint.root) == ("http://host:8000/v1", "http://host:8000")
    assert parse_endpoint({"url": "https://host/openai", "model": "m"}).url == "https://host/openai/v1"


def test_every_part_reaches_the_endpoint() -> None:
    given = {**GIVEN, "api": "chat", "key_env": "MY_KEY", "tokenizer": "./t", "timeout": "2.5"}
    assert parse_endpoint(given) == Endpoint("http://host:8000/v1", "m", "chat", "MY_KEY", "./t", 2.5)
    assert parse_endpoint({**GIVEN, "api": "", "timeout": None}) == Endpoint("http://host:8000/v1", "m")


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("url", "localhost:8000", "http://localhost:8000/v1"),
        ("url", "http://", "http://localhost:8000/v1"),
        ("url", "http://host:port", "http://localhost:8000/v1"),
        ("url", "http://ho st", "http://localhost:8000/v1"),
        ("url", "http://me:s3cret@host", "key_env"),
        ("url", "http://host?api_key=s3cret", "key_env"),
        ("model", 3, "text"),
        ("api", "embeddings", "completions, chat"),
        ("key_env", "s3cret-key", "name of an environment variable"),
        ("timeout", 0, "seconds"),
        ("timeout", "nan", "seconds"),
        ("timeout", True, "seconds"),
        ("tokeniser", "t", "did you mean 'tokenizer'"),
    ],
)
def test_a_bad_part_is_refused_without_its_secret(part: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoint({**GIVEN, part: value})
    assert said in str(caught.value)
    assert len(caught.value.faults) == 1
    assert "s3cret" not in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoint({"api": "x", "timeout": -1})
    assert len(caught.value.faults) == 4  # url and model are missing, too
    with pytest.raises(ConfigError, match="mapping"):
        parse_endpoint("http://host")


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint("http://host/v1", "m", key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(EngineError, match="MY_KEY is not set"):
        endpoint.key()
    monkeypatch.setenv("MY_KEY", " s3cret\n")
    assert endpoint.key() == "s3cret"
    assert "s3cret" not in repr(endpoint) + str(asdict(endpoint))
    monkeypatch.setenv("MY_KEY", "s3cret\u00e9")
    with pytest.raises(EngineError, match="printable ASCII") as caught:
        endpoint.key()
    assert "s3cret" not in str(caught.value)
    assert Endpoint("http://host/v1", "m").key() == ""


def test_a_request_has_openais_fields_and_others_only_where_they_change_something() -> None:
    endpoint = Endpoint("http://host/v1", "m")
    plain = body_of(endpoint, [1, 2], Sampling(8), Wanted(False, 0, False, False))
    assert plain == {"model": "m", "prompt": [1, 2], "stream": True, "max_tokens": 8, "temperature": 0.0}
    sampling = Sampling(8, 0.7, 5, 0.9, 0.1, 3, ("\n",), 2, True, {7: -1.0})
    full = body_of(endpoint, "a", sampling, Wanted(top_logprobs=4), {"speculative": False})
    assert full == {
        "model": "m", "prompt": "a", "stream": True, "max_tokens": 8, "temperature": 0.7, "top_k": 5, "top_p": 0.9,
        "min_p": 0.1, "seed": 3, "stop": ["\n"], "min_tokens": 2, "ignore_eos": True, "logit_bias": {"7": -1.0},
        "return_token_ids": True, "return_meta_info": True, "logprobs": 4, "stream_options": {"include_usage": True},
        "speculative": False,
    }  # fmt: skip


def test_chat_asks_for_log_probabilities_otherwise() -> None:
    endpoint = Endpoint("http://host/v1", "m", "chat")
    body = body_of(endpoint, [{"role": "user", "content": "a"}], Sampling(8, seed=0), Wanted(False, 4, False))
    assert (body["messages"], body["logprobs"], body["top_logprobs"]) == ([{"role": "user", "content": "a"}], True, 4)
    assert "prompt" not in body
    assert body["seed"] == 0


def test_less_is_asked_for_step_by_step() -> None:
    wanted = Wanted(True, 8, tokens_as_ids=True)
    assert wanted.fewer()[:5] == [
        Wanted(True, 8, meta_info=False, tokens_as_ids=True),
        Wanted(True, 8, False, False, True),
        Wanted(False, 8, meta_info=False),
        Wanted(False, 8, False, False),
        Wanted(True, 5, meta_info=False, tokens_as_ids=True),
    ]
    assert wanted.fewer()[-1] == Wanted(False, 0, False, False)
    assert Wanted(False, 0, False, False).fewer() == []
