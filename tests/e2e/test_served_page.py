"""Real servers of our own next to methods of this process: the page and the runs, and a server that is killed."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from helpers.cli_runner import evaluate, flat_runs, records, without_clocks
from helpers.openai_process import PATIENCE, ServerProcess, serving
from specexp.engines import client

pytestmark = pytest.mark.slow
METHODS = ["engine:plain", "engine:spec", "baseline", "speculative"]
SERVER = {"plain": ("--method", "baseline"), "spec": ("--method", "speculative", "--gamma", "4")}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


def arguments(folder: Path, plain: ServerProcess, spec: ServerProcess, *methods: str, limit: int = 4) -> list[str]:
    addresses = {"plain": plain, "spec": spec}
    engines = {name: {"url": f"http://127.0.0.1:{server.port}"} for name, server in addresses.items()}
    engine = {"model": "arith", "tokenizer": "zoo:target", "methods": engines}
    given = {"engine": engine, "methods": list(methods), "limit": limit, "max_new_tokens": 60}
    given |= {"gamma": 4} if "speculative" in methods else {}
    (folder / "mine.yaml").write_text(yaml.safe_dump(given))
    return ["--experiment", "arith_quick", "--config", "mine.yaml", "--output", "out"]


def test_two_engines_and_our_own_methods_are_one_page(workplace: Path) -> None:
    with ExitStack() as stack:
        plain, spec = (stack.enter_context(serving(_made(workplace / name), *given, "--name", "arith"))
                       for name, given in SERVER.items())  # fmt: skip
        result = evaluate(*arguments(workplace, plain, spec, *METHODS))
    assert result.exit_code == 0, result.output
    made = records(workplace / "out")
    assert len(made) == 4 * len(METHODS)
    by_prompt: dict[str, set[tuple[int, ...]]] = {}
    for record in made:
        by_prompt.setdefault(record["prompt_id"], set()).add(tuple(record["token_ids"]))
    assert all(len(outputs) == 1 for outputs in by_prompt.values())  # greedy, and all of them lossless
    summary = json.loads((workplace / "out" / "summary.json").read_text())
    assert summary["engine:spec"]["quality/equal_to_baseline"] == 1
    # The server and this process draft and accept the same tokens, and say so by the same names.
    ours = next(each for label, each in summary.items() if label.startswith("speculative"))
    assert summary["engine:spec"]["accept/draft_rate"] == pytest.approx(ours["accept/draft_rate"])
    for name in ("accept/mean_length", "accept/drafted_length"):  # of rounds with a draft, ours of all rounds
        assert summary["engine:spec"][name] == pytest.approx(ours[name], rel=0.05), name
    page = (workplace / "out" / "report.html").read_text()
    for label in summary:
        assert label in page
    assert "Engines are compared with engine:plain, never with our own methods" in page
    assert re.search(r"engine:spec answers at .* the speed of engine:plain", re.sub("<[^>]*>", "", page))
    assert "records of an earlier version" not in page
    assert not [name for name in summary["engine:spec"] if name.startswith("calls/")]  # which no client can count
    assert "engine:spec: the server gives text and token ids and log-probabilities" in page
    tags = {name: run.data.tags["engine"] for name, run in flat_runs().items()}
    assert sorted(tags.values()) == ["in-process", "in-process", "plain", "spec"]


def test_a_server_that_is_killed_loses_nothing(workplace: Path) -> None:
    methods = METHODS[:2]
    with serving(_made(workplace / "plain"), *SERVER["plain"], "--name", "arith") as plain:
        with serving(_made(workplace / "spec"), *SERVER["spec"], "--name", "arith") as spec:
            given = arguments(workplace, plain, spec, *methods, limit=12)
            whole = evaluate(*given[:-1], "whole")
            assert whole.exit_code == 0, whole.output
            lines = workplace / "out" / "records.jsonl"
            killer = threading.Thread(target=_when, args=(lambda: _count(lines) >= 6, spec.process.kill))
            killer.start()
            result = evaluate(*given)
            killer.join()
        assert result.exit_code == 2, result.output
        assert re.search(r"engine http://127\.0\.0\.1:\d+/v1: .*(resume|in the middle)", result.output)
        assert "Traceback" not in result.output
        done = _count(lines)
        assert 6 <= done < 24
        port = str(spec.port)
        with serving(_made(workplace / "again"), *SERVER["spec"], "--name", "arith", "--port", port):
            result = evaluate(*given, "--resume")
    assert result.exit_code == 0, result.output
    resumed = [without_served_clocks(each) for each in without_clocks(records(workplace / "out"))]
    assert resumed == [without_served_clocks(each) for each in without_clocks(records(workplace / "whole"))]


def without_served_clocks(record: dict[str, object]) -> dict[str, object]:
    served = record["served"]
    assert isinstance(served, dict)
    return record | {"served": served["drafts"]}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _count(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def _when(reached: Callable[[], bool], act: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached() and time.monotonic() < end:
        time.sleep(0.01)
    act()
