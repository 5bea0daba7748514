"""The engines of an experiment: what they share, what differs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from specexp.engines.endpoint import Endpoint
from specexp.engines.served_methods import ServedMethod, parse_served
from specexp.errors import ConfigError

SHARED = {"url": "http://a:1", "model": "m"}
A, B = Endpoint("http://a:1/v1", "m"), Endpoint("http://b:2/v1", "m")


def test_one_engine_needs_no_name() -> None:
    assert parse_served(SHARED) == (ServedMethod("served", A),)
    assert parse_served(SHARED)[0].method == "engine:served"


def test_engines_differ_by_address_or_by_request() -> None:
    methods = {"plain": {"request": {"speculative.n_max": 0}}, "spec": None, "other": {"url": "http://b:2"}}
    plain, spec, other = parse_served({**SHARED, "methods": methods})
    assert (plain.endpoint, spec.endpoint, other.endpoint) == (A, A, B)
    assert (dict(plain.switch), dict(spec.switch)) == ({"speculative.n_max": 0}, {})
    assert hash(plain) != hash(spec)


def test_a_request_of_all_is_laid_under_ones_own() -> None:
    given = {**SHARED, "request": {"x": 1, "y": {"b": 2, "a": 1}}, "methods": {"p": None, "q": {"request": {"x": 3}}}}
    p, q = parse_served(given)
    assert dict(p.switch) == {"x": 1, "y": {"a": 1, "b": 2}}
    assert dict(q.switch) == {"x": 3, "y": {"a": 1, "b": 2}}
    assert p.request == (("x", "1"), ("y", '{"a": 1, "b": 2}'))


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({}, "a mapping from names"),
        (["plain"], "a mapping from names"),
        ({"a b": {}}, "letters, digits"),
        ({1: {}}, "letters, digits"),
        ({"p": "x"}, "what differs must be a mapping"),
        ({"p": {"request": [1]}}, "request must be a mapping"),
        ({"p": {"request": {"temperature": 1}}}, "request has temperature"),
        ({"p": {"request": {"top_logprobs": 1}}}, "request has top_logprobs"),
        ({"p": {"request": {"x": float("nan")}}}, "no JSON"),
        ({"p": {"request": {"x": object()}}}, "no JSON"),
        ({"p": {"timeout": -1}}, "engine:p: timeout is -1"),
        ({"p": {}, "q": {}}, "engine:q is the same as one before it"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_served({**SHARED, "methods": methods})
    assert len(caught.value.faults) == 1


def test_faults_of_every_engine_are_told_at_once_without_secrets() -> None:
    methods = {"p": {"url": "http://me:s3cret@a"}, "q": {"api": "x"}}
    with pytest.raises(ConfigError) as caught:
        parse_served({**SHARED, "methods": methods})
    assert len(caught.value.faults) == 2
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^it must be a mapping"):
        parse_served("http://a")
