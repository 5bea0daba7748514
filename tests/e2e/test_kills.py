"""Kills and SIGTERMs while runs are sent: no run is left open, none is doubled, and nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from mlflow.tracking.fluent import _active_run_stack

from helpers.cli_runner import evaluate, flat_runs, runs
from helpers.tracking_server import serving
from helpers.uploads import TOY, WRITES, all_held, failing, held, undisturbed, upload
from specexp import signals
from specexp.tracking import backend, client

ROOT = Path(__file__).resolve().parents[2]
KILLED_PROCESS = ROOT / "tests" / "helpers" / "killed_process.py"
SEED = 14
KILLS = 10  # of each signal, on each store


class Killed(BaseException):
    """Stands for SIGKILL where nothing is done any more: no handler, no cleaning up."""


@contextmanager
def at_write(number: int, what: Any) -> Iterator[list[str]]:
    """`what` happens when the store has done this write and nobody has heard of it; gives the writes begun."""
    begun: list[str] = []

    def hooked(name: str, real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            begun.append(name)
            result = real(*arguments, **more)
            if len(begun) == number:
                what()
            return result

        return call

    names = (*WRITES, "delete_run")
    with mock.patch.multiple(MlflowClient, **{name: hooked(name, getattr(MlflowClient, name)) for name in names}):
        yield begun


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def none_is_open() -> None:
    assert not [run.info.run_name for run in runs() if run.info.status == "RUNNING"]


def pending(folder: Path) -> Path:
    """An output folder that has everything to send, and nothing of it is in the store."""
    with failing(behind=0):
        assert evaluate(*TOY, "--output", str(folder)).exit_code == 3
    return folder


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_at_any_write_of_an_upload_leaves_no_run_open(
    workplace: Path, empty_store: Path, number: signal.Signals
) -> None:
    pending(workplace / "out")
    hit = []
    for write in [1, 2, 3, 4, 5, 6, 5, 4, 9]:  # each upload goes on where the one before was stopped
        with at_write(write, lambda: os.kill(os.getpid(), number)) as begun:
            result = upload()
        if len(begun) < write:
            break
        assert result.exit_code == (143 if number == signal.SIGTERM else 130), result.output
        assert len(result.output.splitlines()) == 1
        hit.append(begun[write - 1])
        none_is_open()
    assert {"create_run", "log_batch", "log_artifact"} <= set(hit), "the signals hit too little"
    assert upload().exit_code == 0
    assert all_held(workplace / "found") == undisturbed(workplace / "out", workplace, empty_store)


@pytest.mark.parametrize("write", [1, 2, 5, 11])
@pytest.mark.slow
def test_sigterm_as_evaluate_makes_its_runs_leaves_none_open(workplace: Path, write: int) -> None:
    with at_write(write, terminate) as begun:
        result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 143, result.output
    assert begun[0] == "create_run"
    none_is_open()
    assert evaluate(*TOY, "--output", "out", "--resume").exit_code == 0
    none_is_open()
    assert sorted(flat_runs()) == ["baseline", "speculative_k3"]


def killed() -> None:
    raise Killed


@pytest.mark.slow
def test_a_kill_at_any_write_leaves_nothing_open_after_the_next_upload(workplace: Path, empty_store: Path) -> None:
    pending(workplace / "out")
    for write in (1, 2, 3, 5, 6):
        with (
            at_write(write, killed),
            mock.patch.object(client, "close"),
            mock.patch.object(mlflow, "end_run"),
            pytest.raises(Killed),
        ):
            upload()
        _active_run_stack.get().clear()
    assert [run for run in runs() if run.info.status == "RUNNING"], "the kills hit nothing"
    assert upload().exit_code == 0
    assert all_held(workplace / "found") == undisturbed(workplace / "out", workplace, empty_store)


@pytest.mark.slow
def test_a_main_run_that_was_made_twice_because_an_answer_got_lost_is_one(workplace: Path) -> None:
    real = MlflowClient.create_run

    def twice(*arguments: Any, **more: Any) -> Any:
        real(*arguments, **more)
        return real(*arguments, **more)

    with mock.patch.object(MlflowClient, "create_run", twice):
        assert evaluate(*TOY, "--output", "out").exit_code == 0
    assert sorted(run.info.status for run in runs()) == ["FINISHED"] * 3


def test_sigterm_ends_a_command_whose_store_hangs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.1)
    monkeypatch.setattr(backend, "_LAST_TIMEOUT", 0.1)
    woken = []

    def hangs(*arguments: Any, **more: Any) -> None:
        time.sleep(60)
        woken.append(arguments)

    def slow(*arguments: Any, **more: Any) -> None:
        threading.Timer(0.05, terminate).start()
        hangs()

    pending(workplace / "out")
    names = {"create_run": slow, "set_terminated": hangs, "search_runs": MlflowClient.search_runs}
    with mock.patch.multiple(MlflowClient, **names):
        result = upload()
    assert result.exit_code == 143, result.output
    assert not woken, "the store was waited for"


# The clock decides where these hit: slow, and longer than CI can bear.


def start(folder: Path, number: int, seconds: float, command: str, *arguments: str) -> tuple[int, str]:
    """Run a command that is killed so many seconds into sending; its exit code, and what it said."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    process = subprocess.run(
        [sys.executable, str(KILLED_PROCESS), str(number), str(seconds), command, *arguments],
        cwd=folder, env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return process.returncode, process.stdout


def values(run: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when a run was sent."""
    numbers = {key: [value for value, _, _ in history] for key, history in run["metrics"].items()}
    kept_metrics = {key: value for key, value in numbers.items() if not key.startswith("memory/")}
    return {**run, "metrics": kept_metrics, "files": sorted(run["files"])}


def kept(folder: Path) -> dict[str, Any]:
    """The finished runs by key, without the comparison runs that a kill has ended."""
    finished = [run for run in runs() if run.info.status == "FINISHED"]
    assert {run.info.status for run in runs()} <= {"FINISHED", "KILLED", "FAILED"}
    lost = [run for run in runs() if run.info.status != "FINISHED"]
    assert {run.data.tags["method"] for run in lost} <= {"comparison"}, "a method's run was made twice"
    named = {run.data.tags["specexp.key"]: values(held(run, folder)) for run in finished}
    assert len(named) == len(finished), "a run was made twice"
    return named


def one_kill(folder: Path, number: signal.Signals, seconds: float, resumed: bool, wanted: dict[str, Any]) -> bool:
    """Kill, look, go on, and look again; whether the kill came before the end."""
    command = ["evaluate", *TOY, "--resume"] if resumed else ["upload"]
    code, said = start(folder, number, seconds, *command, "--output", "out")
    where = f"{number.name} {seconds:.3f} s into {command[0]}: {said}"
    assert code in ((0, 143) if number == signal.SIGTERM else (0, -signal.SIGKILL)), where
    assert "Traceback" not in said, where
    if number == signal.SIGTERM:
        assert not [run for run in runs() if run.info.status == "RUNNING"], where
    go_on = evaluate(*TOY, "--output", str(folder / "out"), "--resume") if resumed else None
    result = go_on or upload("--output", str(folder / "out"))
    assert result.exit_code == 0, where + result.output
    none_is_open()
    if resumed:
        assert kept(folder / "found") == {key: values(each) for key, each in wanted.items()}, where
    else:
        assert all_held(folder / "found") == wanted, where
    return code != 0


def kill_at_random(workplace: Path, empty_store: Path, seconds: float, moments: random.Random) -> list[str]:
    """Kills and SIGTERMs by turns, of `evaluate` and of `upload` by turns, all of the same folder."""
    with failing(behind=0):
        assert evaluate(*TOY, "--output", "first").exit_code == 3
    wanted = undisturbed(workplace / "first", workplace, empty_store)
    hits = []
    for trial in range(2 * KILLS):
        for run in runs():
            MlflowClient().delete_run(run.info.run_id)
        number = (signal.SIGKILL, signal.SIGTERM)[trial % 2]
        folder = workplace / f"trial-{trial}"
        folder.mkdir()
        shutil.copytree(workplace / "first", folder / "out")
        moment = moments.uniform(0, seconds)
        if one_kill(folder, number, moment, trial // 2 % 2 == 0, wanted):
            hits.append(f"{number.name} {moment:.3f} s")
        else:
            seconds = moment  # it came too late: sending takes no longer than this
    return hits


def seconds_of_sending(workplace: Path) -> float:
    """How long an undisturbed upload takes here."""
    pending(workplace / "timed")
    begun = time.monotonic()
    assert upload("--output", "timed").exit_code == 0
    return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: str(n.name))
def test_a_process_that_is_killed_while_it_sends_leaves_no_run_open(
    workplace: Path, empty_store: Path, number: signal.Signals
) -> None:
    pending(workplace / "out")
    wanted = undisturbed(workplace / "out", workplace, empty_store)
    assert one_kill(workplace, number, 0.02, False, wanted)


@pytest.mark.nightly
@pytest.mark.parametrize("on", ["sqlite", "server"])
def test_kills_at_random_moments_of_sending(
    workplace: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    print(f"seed {SEED}")
    moments = random.Random(f"{SEED} {on}")
    if on == "sqlite":
        hits = kill_at_random(workplace, empty_store, seconds_of_sending(workplace), moments)
    else:
        with serving(workplace / "server") as server:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
            hits = kill_at_random(workplace, empty_store, seconds_of_sending(workplace), moments)
    print(f"{len(hits)} of {2 * KILLS} came before the end: {', '.join(hits)}")
    assert len(hits) >= KILLS, "too few of them came before the end"
