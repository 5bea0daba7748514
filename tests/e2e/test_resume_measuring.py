"""advise and benchmark: what was measured stays, is not measured again, and an interruption changes no result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from entrypoints import advise, benchmark
from helpers.cli_runner import invoke, runs
from helpers.fake_clock import Clock, ClockedToy, prepared_toy
from specexp import config
from specexp.advise.advice import Advice, measure
from specexp.advise.advice_report import as_json
from specexp.benchmark import benchmark as measuring
from specexp.benchmark import quick
from specexp.errors import OutputError
from specexp.profiling.time_estimate import Pace
from specexp.storage.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--experiment", "toy_quick", "--limit", "2", "--max-new-tokens", "12", "--gamma", "2", "--repeats", "2",
         "--tree-budget", "none"]  # fmt: skip
QUICK = ["--quick", "--limit", "1", "--max-new-tokens", "8", "--repeats", "1", "--gamma", "3", "--batch", "2"]


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specexp.profiling.bandwidth.LARGE", 1 << 20)
    monkeypatch.setattr("specexp.profiling.bandwidth.ONCE", 1 << 20)


class Stopped(Journal):
    """A journal of a process that dies before it has noted unit number `at`."""

    at = 0

    def _add(self, key: Any, value: Any) -> None:
        if len(self._units) == self.at:
            raise KeyboardInterrupt
        super()._add(key, value)


def advice(journal: Journal, calls: list[float] | None = None) -> Advice:
    """On a clocked pair: the same every time, but for the clock's own beginning."""
    clock = Clock()
    models: Any = {
        "target": ClockedToy(clock, 1.0, 0.01, 0.2, vocab_size=24, context=512),
        "draft": ClockedToy(clock, 0.1, 0.0, 0.2, vocab_size=24, context=512, draft_noise=0.4),
    }
    flags: dict[str, Any] = {"methods": "speculative,lookup", "gamma": "2,4", "limit": 2, "max_new_tokens": 12,
                             "min_draft_probability": [0, 0.2]}  # fmt: skip
    made = measure(prepared_toy(models, **flags), False, clock, journal)
    if calls is not None:
        calls.append(clock.now)
    return made


def result(made: Advice) -> dict[str, Any]:
    return {key: value for key, value in as_json(made).items() if key != "environment"}


def keys(path: Path) -> list[Any]:
    return [tuple(json.loads(line)["key"]) for line in path.read_text().splitlines()]


def test_advice_that_is_interrupted_at_every_kind_of_unit_comes_to_the_same(tmp_path: Path) -> None:
    whole = advice(Journal())
    path, spent = tmp_path / "progress.jsonl", list[float]()
    with Journal.open(tmp_path / "whole.jsonl", {}) as journal:
        advice(journal, spent)
    wanted = keys(tmp_path / "whole.jsonl")
    assert {key[0] for key in wanted} == {"facts", "plain", "draft", "costs", "probe", "check"}
    for at in (2, 4, 6, 20, len(wanted) - 3):
        Stopped.at = at
        with Stopped.open(path, {}) as journal, pytest.raises(KeyboardInterrupt):
            advice(journal)
        assert len(keys(path)) == at, "what was noted before stays"
    with Journal.open(path, {}) as journal:
        resumed = advice(journal)
    assert sorted(map(str, keys(path))) == sorted(map(str, wanted)), "nothing is lost, nothing is there twice"
    assert max(Counter(keys(path)).values()) == 1
    got, expected = result(resumed), result(whole)
    assert got["recommended"] == expected["recommended"]
    assert got["best_three"] == expected["best_three"]
    for one, other in zip(got["candidates"], expected["candidates"], strict=True):
        assert one["label"] == other["label"]
        assert one["speedup"] == pytest.approx(other["speedup"])

    again = list[float]()
    with Journal.open(path, {}) as journal:
        assert result(advice(journal, again)) == got, "the very numbers"
    assert again == [0.0], "nothing was decoded"


def test_a_last_line_that_was_not_written_whole_is_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "progress.jsonl"
    with Journal.open(path, {"sweep": False}) as journal:
        assert [journal.unit(("a", i), lambda i=i: i) for i in range(3)] == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-4])
    with Journal.open(path, {"sweep": False}) as journal:
        assert "cut off" in capsys.readouterr().err
        assert journal.count({"a"}) == 2
        assert [journal.unit(("a", i), lambda: "made") for i in range(3)] == [0, 1, "made"]
    with pytest.raises(OutputError, match="was begun with another sweep; name another output folder"):
        Journal.open(path, {"sweep": True}).__enter__()
    path.write_text(path.read_text().replace('"key"', '"kez"', 1))
    with pytest.raises(OutputError, match="line 1 cannot be read"):
        Journal.open(path, {"sweep": False}).__enter__()


def dies(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    real = Journal._add

    def add(self: Journal, key: Any, value: Any) -> None:
        if len(self._units) == at:
            raise KeyboardInterrupt
        real(self, key, value)

    monkeypatch.setattr(Journal, "_add", add)


def test_the_command_goes_on_where_it_was_and_makes_one_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*more: str) -> Result:
        return invoke(advise.command, *SMALL, *more)

    with monkeypatch.context() as patch:
        dies(patch, 9)
        stopped = run()
    assert stopped.exit_code == 130
    assert stopped.output.splitlines()[-1] == (
        "interrupted; what was recorded stays. Go on with --resume (-P resume=true)."
    )
    assert not runs()
    (folder,) = (workplace / "runs").iterdir()
    before = (folder / "progress.jsonl").read_text()
    other = run("--gamma", "3", "--resume")
    assert other.exit_code == 2
    assert "no folder below 'runs' was begun by advise with these settings; name one with output." in other.output
    changed = run("--sweep", "--resume")
    assert changed.exit_code == 2
    assert "was begun with another sweep; name another output folder." in changed.output
    whole = run("--resume")
    assert whole.exit_code == 0, whole.output
    assert (folder / "progress.jsonl").read_text().startswith(before)
    assert "time: at most about " in whole.output
    assert len(runs()) == 1
    again = run("--resume")
    assert again.exit_code == 0, again.output
    assert "time: " not in again.output, "nothing is left to take time"
    assert len(runs()) == 1
    assert json.loads((folder / "advice.json").read_text())["sentence"] in again.output


@pytest.mark.slow
def test_the_benchmark_command_goes_on_where_it_was(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*more: str) -> Result:
        return invoke(benchmark.command, *QUICK, "--output", "out", *more)

    path = workplace / "out" / "progress.jsonl"
    for at in (5, 14, 28):
        with monkeypatch.context() as patch:
            dies(patch, at)
            assert run("--resume").exit_code == 130
        assert len(keys(path)) == at
    before = path.read_text()
    done = run("--resume")
    assert done.exit_code == 0, done.output
    assert path.read_text().startswith(before)
    measured = keys(path)
    assert max(Counter(measured).values()) == 1
    assert {key[0] for key in measured} == {
        "facts", "plan", "output", "costs", "search", "batch", "timed", "split", "floor",
    }  # fmt: skip
    numbers = json.loads((workplace / "out" / "benchmark.json").read_text())
    assert numbers["outputs_equal"] is True
    again = run("--resume")
    assert again.exit_code == 0, again.output
    assert json.loads((workplace / "out" / "benchmark.json").read_text()) == numbers
    assert keys(path) == measured
    assert len(runs()) == 1


@pytest.fixture(scope="module")
def prepared() -> Any:
    return measuring.prepare(config.resolve("arith_quick", dict(benchmark.FIXED), benchmark.QUICK))


def test_a_quick_benchmark_is_made_to_fit_by_what_was_not_set(prepared: Any) -> None:
    def plan(token: float, given: tuple[str, ...] = ()) -> quick.QuickSettings:
        return quick.plan(prepared, given, quick.Paces(Pace(2 * token, token), Pace(2 * token, 2 * token)))

    fast, slow, slowest = plan(1e-4), plan(0.03), plan(0.5)
    assert fast.settings == {"batch": 16, "limit": 3, "repeats": 2, "max_new_tokens": 48}
    assert slow.settings["batch"] == 1
    assert slow.seconds <= quick.BUDGET < slowest.seconds, "the last rung is taken though it takes longer"
    assert slowest.settings == dict(zip(quick.NAMES, quick.LADDER[-1], strict=True))
    assert "limit" not in plan(0.5, ("limit",)).settings
    every = [quick.seconds(quick.shortened(prepared, dict(zip(quick.NAMES, rung, strict=True))),
             quick.Paces(Pace(0.1, 0.1), Pace(0.1, 0.2))) for rung in quick.LADDER]  # fmt: skip
    assert every == sorted(every, reverse=True), "each rung is shorter than the one before"
    note = quick.note(prepared.experiment, slow.settings)
    assert note is not None
    assert note.startswith("quick: batch 1 instead of 16, ")
    assert quick.note(prepared.experiment, fast.settings) is None


@pytest.mark.slow
def test_a_benchmark_that_is_interrupted_measures_what_was_planned_once(prepared: Any, tmp_path: Path) -> None:
    short = quick.shortened(prepared, {"batch": 2, "limit": 1, "repeats": 1, "max_new_tokens": 3})
    path = tmp_path / "progress.jsonl"
    for at in (4, 16, 25):
        Stopped.at = at
        with Stopped.open(path, {}) as journal, pytest.raises(KeyboardInterrupt):
            measuring.measure(short, False, journal)
        assert len(keys(path)) == at
    with Journal.open(path, {}) as journal:
        measured = measuring.measure(short, False, journal)
    made = keys(path)
    assert max(Counter(made).values()) == 1
    kinds = Counter(key[0] for key in made)
    assert kinds["output"] + kinds["search"] + kinds["timed"] == measuring.num_runs(short, False)
    assert kinds["batch"] == 4
    assert measured.batched is not None
    assert not measured.differences
    for kind in ("costs", "split", "floor"):
        assert kinds[kind] > 0
    with Journal.open(path, {}) as journal:
        again = measuring.measure(short, False, journal)
    assert (again.timed, again.search, again.floor) == (measured.timed, measured.search, measured.floor)
    assert keys(path) == made, "nothing was measured again"


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("advise", ["--limit", "2", "--gamma", "2,4", "--tree-budget", "none", "--max-new-tokens", "60"]),
        ("benchmark", ["--quick", "--limit", "2", "--max-new-tokens", "32"]),
    ],
)
def test_kill_9_loses_and_doubles_nothing(workplace: Path, name: str, settings: list[str]) -> None:
    rng, path = random.Random(0), workplace / "out" / "progress.jsonl"
    noted: list[str] = []
    for _ in range(4):
        process = start(f"entrypoints.{name}", *settings, "--output", "out", "--resume", "true")
        deadline = time.monotonic() + 120
        while not _grew(path, len(noted)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines = path.read_text().splitlines()
        assert lines[: len(noted)] == noted, "what was noted before stays"
        noted = [line for line in lines if line.endswith("}")]
    assert start(f"entrypoints.{name}", *settings, "--output", "out", "--resume", "true").wait() == 0
    assert path.read_text().splitlines()[: len(noted)] == noted
    assert max(Counter(keys(path)).values()) == 1
    assert len(runs()) == 1


def _grew(path: Path, num_lines: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") > num_lines
