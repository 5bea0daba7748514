"""Evaluations of served engines: alone, next to our own methods, cut off by a server that dies, and without secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from helpers.cli_runner import evaluate, runs
from helpers.fake_engine import FakeEngine, Reply, fake_engine, text_chunk, usage_chunk
from specexp.engines import client

TRIALS = 4  # requests that find out what a server takes and gives, with log-probabilities and without
SPEC = Reply(
    (
        text_chunk("a", token_ids=[5]),
        text_chunk("bc", "length", token_ids=[6, 7]),
        usage_chunk(3, timings={"draft_n": 4, "draft_n_accepted": 1}),
    )
)
LIAR = Reply(
    (text_chunk("abc", "length", token_ids=[5, 6, 7]), usage_chunk(3, timings={"draft_n": 4, "draft_n_accepted": 9}))
)
TEXT = Reply((text_chunk("a"), text_chunk("bc", "length"), usage_chunk(3)))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)


def settings(folder: Path, plain: FakeEngine, spec: FakeEngine, *methods: str, **more: object) -> list[str]:
    engine = {"model": "m", "key_env": "MY_KEY", "methods": {"plain": {"url": plain.url}, "spec": {"url": spec.url}}}
    given = {"engine": engine, "methods": ["engine:plain", "engine:spec", *methods], "limit": 3, "max_new_tokens": 3}
    (folder / "mine.yaml").write_text(yaml.safe_dump({**given, **more}))
    return ["--experiment", "toy_quick", "--config", "mine.yaml", "--output", "out"]


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "out" / "records.jsonl").read_text().splitlines()]


def test_two_engines_are_compared_without_a_model(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret-key")
    with fake_engine(TEXT) as plain, fake_engine(SPEC) as spec:
        result = evaluate(*settings(workplace, plain, spec))
        assert result.exit_code == 0, result.output
        asked = [len(each.requests) for each in (plain, spec)]
        again = evaluate(*settings(workplace, plain, spec), "--resume")
        assert again.exit_code == 0, again.output
        assert [len(each.requests) for each in (plain, spec)] == asked == [TRIALS + 3, TRIALS + 3]
    made = records(workplace)
    order = [each["label"] for each in made]
    assert order == ["engine:plain", "engine:spec", "engine:spec", "engine:plain", "engine:plain", "engine:spec"]
    assert {(each["text"], each["num_tokens"]) for each in made} == {("abc", 3)}
    found = json.loads((workplace / "out" / "summary.json").read_text())["engine:spec"]
    assert found["accept/draft_rate"] == 0.25
    assert found["quality/equal_to_baseline"] == 1
    assert {"speed/time_per_token", "speed/time_to_first_token", "speed/speedup"} <= found.keys()
    (where,) = json.loads((workplace / "out" / "environments.json").read_text()).values()
    assert where["models"] == {}
    assert where["engines"]["plain"]["compared_by"] == "text"
    assert where["engines"]["spec"]["compared_by"] == "token ids"
    assert "engine:plain: the server gives text, but no token ids and no log-probabilities" in result.output
    assert "verdict: engine:spec answers at " in result.output
    assert re.search(r"; 100\S* ?% of its outputs are equal", result.output)
    tags = {run.data.tags["method"]: run.data for run in runs() if "method" in run.data.tags}
    assert tags["engine:spec"].tags["engine"] == "spec"
    assert tags["engine:spec"].params["engine.model"] == "m"
    assert "target.model" not in tags["engine:spec"].params
    said = result.output + again.output
    files = [path for path in workplace.rglob("*") if path.is_file()]
    assert "s3cret" not in said
    assert not [path for path in files if b"s3cret" in path.read_bytes()]


def test_an_engine_stands_next_to_our_own_methods_and_a_lie_is_told(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    with fake_engine(SPEC) as plain, fake_engine(LIAR) as spec:
        result = evaluate(*settings(workplace, plain, spec, "baseline", "speculative"))
    assert result.exit_code == 0, result.output
    assert "engine:spec: the server's counts of drafts cannot be true: 27 of 12 drafted" in result.output
    found = json.loads((workplace / "out" / "summary.json").read_text())
    assert "accept/alpha" in found[next(name for name in found if name.startswith("speculative"))]
    assert found["baseline"]["speed/speedup"] == found["engine:plain"]["speed/speedup"] == 1
    assert "Engines are compared with engine:plain, never with our own methods" in result.output
    tags = {run.data.tags["method"]: run.data.tags["engine"] for run in runs() if "engine" in run.data.tags}
    assert (tags["baseline"], tags["engine:plain"]) == ("in-process", "plain")


def test_engines_are_compared_where_plain_decoding_was_not_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among themselves, and our own method is the fastest of none but our own."""
    monkeypatch.setenv("MY_KEY", "k")
    with fake_engine(TEXT) as plain, fake_engine(SPEC) as spec:
        result = evaluate(*settings(workplace, plain, spec, "speculative", gamma=3))
    assert result.exit_code == 0, result.output
    assert "verdict: engine:spec answers at " in result.output
    page = " ".join(re.sub("<[^>]*>", "", (workplace / "out" / "report.html").read_text()).split())
    assert "Plain decoding was not run in this process, so the gain is unknown: add baseline" in page
    assert "The fastest setting of those in it is speculative" in page
    found = json.loads((workplace / "out" / "summary.json").read_text())["engine:spec"]
    (words,) = re.findall(r"engine:spec answers at ([\d.]+)x the speed of engine:plain \(95 %", page)
    (again,) = re.findall(r"engine:spec([\d.]+)x the speed of engine:plain", page)
    assert float(words) == float(again) == pytest.approx(found["speed/speedup"], abs=0.006)


def test_a_server_that_dies_loses_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    died = Reply((text_chunk("a"),), complete=False)
    with fake_engine(TEXT) as plain, fake_engine(*[SPEC] * (TRIALS + 1), died) as spec:
        result = evaluate(*settings(workplace, plain, spec))
        assert result.exit_code == 2, result.output
        assert "ended in the middle of the output" in result.output
        assert len(records(workplace)) == 2
        assert len(spec.requests) == TRIALS + 1 + client.ATTEMPTS
        spec.replies = [SPEC]
        again = evaluate(*settings(workplace, plain, spec), "--resume")
    assert again.exit_code == 0, again.output
    assert len(records(workplace)) == 6


def test_bad_engines_are_told_before_anything_is_asked_and_without_secrets(workplace: Path) -> None:
    def said(**given: object) -> str:
        (workplace / "mine.yaml").write_text(yaml.safe_dump(given))
        result = evaluate("--experiment", "toy_quick", "--config", "mine.yaml", "--output", "out")
        assert result.exit_code == 2, result.output
        assert "s3cret" not in result.output
        return result.output

    good = {"url": "http://127.0.0.1:9", "model": "m"}
    assert "must have no user, password" in said(engine={**good, "url": "http://me:s3cret@host"})
    assert "needs the setting engine" in said(methods=["engine:x"])
    assert "did you mean 'engine:served'" in said(engine=good, methods=["engine:serve"])
    assert "methods do not have engine:served" in said(engine=good)
    assert "batch is 2" in said(engine=good, methods=["engine:served"], batch=2)


def counted_by_logprobs(text: str = "abc") -> Reply:
    """An answer without usage, as llama-cpp-python's streams are; log-probabilities count its tokens if asked for."""
    logprobs = {"tokens": list(text), "token_logprobs": [-0.1] * len(text), "top_logprobs": [{}] * len(text)}
    return Reply((text_chunk(text, "length", logprobs=logprobs),))


def test_log_probabilities_count_the_tokens_of_a_server_that_does_not(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    uncounted = Reply((text_chunk("abc", "length"),))
    with (
        fake_engine(TEXT) as plain,
        fake_engine(*[counted_by_logprobs()] * 2, *[uncounted] * 2, counted_by_logprobs()) as spec,
    ):
        result = evaluate(*settings(workplace, plain, spec))
        assert result.exit_code == 0, result.output
        assert [request.get("logprobs") for request in spec.requests] == [1, 1, None, None, 1, 1, 1]
        assert [request.get("logprobs") for request in plain.requests] == [1, 1, *[None] * 5]
    assert {each["num_tokens"] for each in records(workplace)} == {3}
    assert "its tokens are counted by log-probabilities, which may slow it down" in result.output
    with fake_engine(TEXT) as plain, fake_engine(uncounted) as spec:
        result = evaluate(*settings(workplace, plain, spec)[:-1], "other")
    assert result.exit_code == 2
    assert "counts no tokens in its answers" in result.output


def interrupted(folder: Path, plain: FakeEngine, spec: FakeEngine) -> list[str]:
    """Arguments of a run whose second engine died after its first output."""
    arguments = settings(folder, plain, spec)
    spec.replies = [*[SPEC] * (TRIALS + 1), Reply((text_chunk("a"),), complete=False)]
    assert evaluate(*arguments).exit_code == 2
    assert len(records(folder)) == 2
    return [*arguments, "--resume"]


def test_a_run_is_not_resumed_with_another_server(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    with fake_engine(TEXT) as plain, fake_engine(SPEC) as spec:
        resumed = interrupted(workplace, plain, spec)
        spec.replies = [TEXT]
        result = evaluate(*resumed)
        assert result.exit_code == 2
        assert f"engine:spec: the server at {spec.url}/v1 gave outputs to compare by token ids when" in result.output
        assert "and now by text, so it is another server or version; start that server again, or name" in result.output
        spec.replies, spec.models = [SPEC], ["other"]
        result = evaluate(*resumed)
        assert result.exit_code == 2
        assert "had the model 'm' when this folder was begun, and now has 'other'; start that" in result.output
        assert len(records(workplace)) == 2
        spec.models = ["m", "n"]
        assert evaluate(*resumed).exit_code == 0
    assert len(records(workplace)) == 6


def test_a_resume_whose_server_answers_otherwise_says_so(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    with fake_engine(TEXT) as plain, fake_engine(SPEC) as spec:
        resumed = interrupted(workplace, plain, spec)
        spec.replies = [Reply((text_chunk("xyz", "length", token_ids=[1, 2, 3]), usage_chunk(3)))]
        plain.models = ["m"]
        result = evaluate(*resumed)
    assert result.exit_code == 0, result.output
    said = "engine:spec: the run was resumed, and the server then began the first prompt's greedy output with 'xyz'"
    assert result.output.count(said) == 2  # at its start, and in the report
    assert "before with 'abc': another model, or outputs that vary." in result.output
    assert "engine:plain: the run was resumed, and the server then listed other models than before." in result.output
