"""`benchmark` with engines: what it writes and logs, how it resumes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from mlflow.tracking import MlflowClient

from entrypoints.benchmark import command
from helpers.cli_runner import evaluate, interrupts, invoke, refused, runs
from helpers.fake_engine import FakeEngine, Reply, fake_engine, text_chunk, usage_chunk
from helpers.html_reading import Page
from helpers.openai_process import serving
from specexp.engines import client
from specexp.engines.body import Sampling, Wanted
from specexp.engines.endpoint import Endpoint
from specexp.load_testing import capacity
from specexp.load_testing.capacity import Capacity
from specexp.load_testing.loops import closed_loop
from specexp.load_testing.null_server import null_server

ANSWER = Reply((text_chunk("a"), text_chunk("bc", "length"), usage_chunk(3)))
BUSY = Reply(status=429, error={"error": {"message": "too many"}}, headers={"Retry-After": "0.01"})
SMALL = {"concurrency": [1, 2], "num_requests": 3, "repeats": 2, "limit": 3, "max_new_tokens": 3}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(capacity, "measure", lambda clients: [Capacity(each, 1e-6, 1e-6) for each in clients])


def settings(folder: Path, plain: FakeEngine, spec: FakeEngine, **more: object) -> list[str]:
    engine = {"model": "m", "methods": {"plain": {"url": plain.url}, "spec": {"url": spec.url}}}
    given = {"engine": engine, "methods": ["engine:plain", "engine:spec"], **SMALL, **more}
    (folder / "mine.yaml").write_text(yaml.safe_dump(given))
    return ["--experiment", "toy_quick", "--config", "mine.yaml", "--output", "out"]


def benchmark(*arguments: str) -> Result:
    return invoke(command, *arguments)


def text_of(path: Path) -> str:
    page = Page()
    page.feed(path.read_text())
    return " ".join(page.text.split())


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "load.json").read_text()))


@pytest.mark.slow
def test_it_leaves_numbers_a_figure_a_page_and_a_run_for_each_method(workplace: Path) -> None:
    with fake_engine(ANSWER) as plain, fake_engine(ANSWER) as spec:
        given = settings(workplace, plain, spec, request_rate=[50], ttft_bound=1e6, tpot_bound=1e6)
        made = benchmark(*given, "--json", "again.json")
        assert made.exit_code == 0, made.output
        # Four requests find out what an engine offers; a closed loop may have begun one more for each client.
        asked = len(plain.requests)
        least = 2 + 2 * sum(warmup + counted for warmup, counted in ((1, 3), (2, 4), (1, 3)))
        assert least <= asked <= least + 2 * (1 + 2)
        again = benchmark(*given, "--resume")
        assert again.exit_code == 0, again.output
        assert len(plain.requests) == asked + 4, "nothing is measured again"
    result = result_of(workplace)
    assert json.loads((workplace / "again.json").read_text()) == result
    assert [(level["kind"], level["value"]) for level in result["levels"]] == [
        ("concurrency", 1), ("concurrency", 2), ("request_rate", 50),
    ]  # fmt: skip
    for level, counted in zip(result["levels"], (6, 8, 6), strict=True):
        for each in level["methods"].values():
            assert (each["requests"], each["failures"], each["tokens"]) == (counted, 0, 3 * counted)
            assert each["tokens_per_second"]["value"] == pytest.approx(3 * counted / each["seconds"])
            assert each["goodput"]["value"] == pytest.approx(counted / each["seconds"])
            assert each["ttft_median"]["value"] <= each["ttft_p99"]["value"]
            assert each["most_in_flight"] <= level["value"]
        assert level["methods"]["engine:plain"]["speedup"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert result["setting"]["num_requests"] == 3
    words = result["break_even"]["engine:spec"]["concurrency"]["words"]
    assert f"The concurrency from which engine:spec is no longer faster than engine:plain: {words}." in made.output
    assert "tok/s" in made.output
    page = text_of(workplace / "out" / "load.html")
    for said in (words, "engine:plain", "Closed loop: clients at once", "Open loop", "Goodput counts requests with"):
        assert said in page
    assert (workplace / "out" / "load.png").read_bytes().startswith(b"\x89PNG")
    by_method = {run.data.tags["method"]: run for run in runs()}
    assert by_method.keys() == {"benchmark", "engine:plain", "engine:spec"}
    run = by_method["engine:spec"]
    assert (run.data.tags["engine"], run.data.params["engine.model"]) == ("spec", "m")
    history = MlflowClient().get_metric_history(run.info.run_id, "load/tokens_per_second")
    expected = {level["value"]: level["methods"]["engine:spec"] for level in result["levels"][:2]}
    assert {point.step: point.value for point in history} == {
        int(value): each["tokens_per_second"]["value"] for value, each in expected.items()
    }
    (point,) = MlflowClient().get_metric_history(run.info.run_id, "load/open_ttft_p99")
    assert point.step == 50_000


@pytest.mark.slow
def test_an_interruption_keeps_what_was_measured(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies, begun = interrupts(3), list[int]()

    async def dying(*arguments: Any) -> Any:
        dies()
        return await closed_loop(*arguments)

    async def counted_loop(ask: Any, clients: int, *arguments: Any) -> Any:
        begun.append(clients)
        return await closed_loop(ask, clients, *arguments)

    with fake_engine(ANSWER) as plain, fake_engine(ANSWER) as spec:
        monkeypatch.setattr("specexp.load_testing.measurement.closed_loop", dying)
        cut = benchmark(*settings(workplace, plain, spec))
        assert cut.exit_code == 130, cut.output
        assert "Go on with --resume" in cut.output
        assert (workplace / "out" / "progress.jsonl").read_text().count('["load"') == 3
        monkeypatch.setattr("specexp.load_testing.measurement.closed_loop", counted_loop)
        again = benchmark(*settings(workplace, plain, spec), "--resume")
        assert again.exit_code == 0, again.output
        # Two rounds of two engines: three of the four measurements at one client had ended. Requests are not counted:
        # a closed loop is ended with up to one more of each client on its way.
        assert begun == [1, 2, 2, 2, 2]
    assert all(each["requests"] for level in result_of(workplace)["levels"] for each in level["methods"].values())


@pytest.mark.slow
def test_refusals_under_load_are_counted_and_not_sent_again(workplace: Path) -> None:
    with fake_engine(ANSWER) as plain, fake_engine(*[ANSWER] * 5, BUSY, ANSWER) as spec:
        made = benchmark(*settings(workplace, plain, spec, concurrency=[1], repeats=1))
    assert made.exit_code == 0, made.output
    (level,) = result_of(workplace)["levels"]
    each = level["methods"]["engine:spec"]
    assert (each["requests"], each["failures"]) == (3, 1)
    ((why, count),) = each["failed_with"].items()
    assert count == 1
    assert "status 429: 'too many'" in why
    assert "engine:spec at 1 clients: 1 requests failed and were not sent again" in made.output


@pytest.mark.slow
def test_an_engine_that_answers_nothing_ends_it_with_one_sentence(workplace: Path) -> None:
    with fake_engine(ANSWER) as plain, fake_engine(*[ANSWER] * 4, BUSY) as spec:
        made = benchmark(*settings(workplace, plain, spec))
    assert made.exit_code == 2
    (error,) = [line for line in made.stderr.splitlines() if line.startswith("error: ")]
    assert "engine:spec answered none of its requests at concurrency 1" in error
    assert error.count("too many") == 1
    assert "Traceback" not in made.output
    assert not (workplace / "out" / "load.json").exists()


def test_what_no_load_can_be_made_of_is_refused_before_anything_is_asked(workplace: Path) -> None:
    good = {"url": "http://127.0.0.1:9", "model": "m"}

    def said(words: str, *flags: str, **given: object) -> None:
        (workplace / "mine.yaml").write_text(yaml.safe_dump({"engine": good, "methods": ["engine:served"], **given}))
        refused(benchmark("--experiment", "toy_quick", "--config", "mine.yaml", *flags), words, workplace)

    said("methods have baseline, but a benchmark with engine", methods=["engine:served", "baseline"])
    said("concurrency is '0'; it must be a whole number >= 1, or several", "--concurrency", "0")
    said("concurrency is '2,2'; it must list each concurrency only once.", "--concurrency", "2,2")
    said("concurrency is '5000'; it must be at most 1,024.", "--concurrency", "5000")
    said("request_rate is '-1'; it must be a number > 0 and at most 10000", "--request-rate", "-1")
    said("ttft_bound is '0'; it must be a number > 0.", "--ttft-bound", "0")
    said("quick and compiled are for models", "--quick")
    said("gamma is given, but no selected method uses it", "--gamma", "3")
    said("engine http://127.0.0.1:9/v1: ", "--concurrency", "1")
    refused(benchmark("--concurrency", "4", "--quick"), "concurrency is given, but it is for served engines", workplace)


def test_evaluate_puts_no_load_on_engines(workplace: Path) -> None:
    given = {"engine": {"url": "http://127.0.0.1:9", "model": "m"}, "methods": ["engine:served"], "tpot_bound": 5}
    (workplace / "mine.yaml").write_text(yaml.safe_dump(given))
    result = evaluate("--experiment", "toy_quick", "--config", "mine.yaml")
    refused(result, "tpot_bound is given, but only benchmark puts engines under load", workplace)


def test_an_engine_without_counts_is_refused(workplace: Path) -> None:
    with fake_engine(Reply((text_chunk("a"), text_chunk("b", "stop")))) as plain, fake_engine(ANSWER) as spec:
        made = benchmark(*settings(workplace, plain, spec))
    refused(made, "counts no tokens in its answers", workplace)


@pytest.mark.slow
def test_the_clients_capacity_is_measured_against_the_null_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(capacity, "REQUESTS", 10)
    one, four = capacity.measure([1, 4])
    assert (one.clients, four.clients) == (1, 4)
    assert one.tokens_per_second > one.requests_per_second > 0
    with null_server(3) as url:
        answer = client.EngineClient(Endpoint(url, "m")).ask("x", Sampling(9), Wanted())
    assert (answer.text, answer.num_tokens, answer.num_chunks, answer.finish_reason) == (" a a a", 3, 3, "length")


@pytest.mark.slow
def test_our_own_server_is_measured_with_and_without_speculation(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of `serve`; each has as many tokens as the other, since both decode greedily."""
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace}/mlflow.db")
    monkeypatch.setattr(capacity, "REQUESTS", 10)
    for name in ("plain", "spec"):
        (workplace / name).mkdir()
    with (
        serving(workplace / "plain", "--method", "baseline") as plain,
        serving(workplace / "spec", "--method", "speculative", "--gamma", "4") as spec,
    ):
        urls = {"plain": f"http://127.0.0.1:{plain.port}", "spec": f"http://127.0.0.1:{spec.port}"}
        model = json.loads(plain.ask(path="/v1/models")[1])["data"][0]["id"]
        engine = {"model": model, "methods": {name: {"url": url} for name, url in urls.items()}}
        given = {**SMALL, "engine": engine, "methods": ["engine:plain", "engine:spec"], "repeats": 1, "limit": 2,
                 "num_requests": 2, "max_new_tokens": 16, "level_seconds": 600}  # fmt: skip
        (workplace / "mine.yaml").write_text(yaml.safe_dump(given))
        made = benchmark("--config", "mine.yaml", "--output", "out")
        assert made.exit_code == 0, made.output
    result = result_of(workplace)
    for level in result["levels"]:
        one, two = level["methods"].values()
        assert one["failures"] == two["failures"] == 0
        assert one["requests"] == two["requests"] >= 2
    first = result["levels"][0]["methods"]
    assert first["engine:plain"]["tokens"] == first["engine:spec"]["tokens"] > 16
    assert first["engine:spec"]["client"]["share"] > 0
    page = text_of(workplace / "out" / "load.html")
    assert "The concurrency from which engine:spec is no longer faster than engine:plain" in page
