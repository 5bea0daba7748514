"""Evaluations and mining on a real Ray cluster of three nodes on this machine, whose workers are killed."""

from __future__ import annotations

import json
import os
import pickle
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from helpers.cli_runner import comparison_runs, records
from helpers.fatal_job import FatalJob
from helpers.started_server import free_port
from specexp.errors import ModelError, WorkerError
from specexp.installed import is_installed
from specexp.workers.dispatch import Crew
from specexp.workers.settings import WorkerSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed("ray"), reason="Ray is not installed: make test-ray installs it"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]
ROOT = Path(__file__).resolve().parents[2]
CLOCKS = ("checksum", "seconds", "prefill_seconds", "time_to_first_token", "environment")
TOY = ("--experiment", "toy_quick", "--limit", "40", "--methods", "baseline,speculative,specexec", "--show", "0")
MINED = ("--experiment", "arith_quick", "--limit", "6", "--max-new-tokens", "60", "--batch", "1")
CERTIFIED = ("--experiment", "toy_quick", "--method", "specexec", "--gamma", "3", "--limit", "6")
ADVISED = ("--experiment", "toy_quick", "--limit", "3", "--gamma", "1,2", "--tree-budget", "none", "--repeats", "1")
ACTOR = "ray::WorkerActor"  # the name that Ray gives an actor's process


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of three nodes with two CPUs each, to be reached from outside, too: by Ray's client."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH", "")
    # Nodes hand their environment to workers, which import what tests have pickled.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "tests"), str(ROOT), before)))
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "120"  # a slow machine starts a client's server slowly
    cluster = Cluster()
    try:
        for port in (free_port(), None, None):
            cluster.add_node(
                num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, ray_client_server_port=port
            )
        yield cluster
    finally:
        cluster.shutdown()
        os.environ["PYTHONPATH"] = before


FROM_INSIDE = "HOST:PORT"
WHERE = [FROM_INSIDE, "ray://HOST:PORT"]
WHERE_TOO = [FROM_INSIDE, pytest.param(WHERE[1], marks=pytest.mark.nightly)]


def address(nodes: Any, where: str) -> str:
    """The cluster's, from one of its nodes or from outside."""
    if where == FROM_INSIDE:
        return str(nodes.address)
    return f"ray://127.0.0.1:{nodes.head_node._ray_params.ray_client_server_port}"


def start(command: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"entrypoints.{command}", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def bytes_of(folder: Path) -> list[str]:
    return [json.dumps({key: value for key, value in each.items() if key not in CLOCKS}) for each in records(folder)]


def actors() -> list[psutil.Process]:
    """The processes of workers, of any cluster here."""
    result = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith(ACTOR):
            result.append(process)
    return result


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_while_it_runs(process: subprocess.Popen[str], path: Path, places: list[int]) -> int:
    """Kill one worker a little after the file has so many lines, each time; returns how many were killed."""
    killed, rng = 0, random.Random(len(places))
    for place in places:
        while process.poll() is None and num_lines(path) < place:
            time.sleep(0.01)
        time.sleep(rng.random() / 20)
        victims = actors()
        if process.poll() is None and victims:
            rng.choice(victims).kill()
            killed += 1
    return killed


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The records of one process."""
    folder = tmp_path_factory.mktemp("plain")
    before = Path.cwd()
    os.chdir(folder)
    try:
        finish(start("evaluate", *TOY, "--output", "out"))
    finally:
        os.chdir(before)
    return bytes_of(folder / "out")


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_records_are_those_of_one_process(number: int, nodes: Any, plain: list[str], workplace: Path) -> None:
    options = ("--workers", str(number), "--ray", nodes.address)
    finish(start("evaluate", *TOY, *options, "--output", "out"))
    assert bytes_of(workplace / "out") == plain
    (comparison,) = comparison_runs()
    assert not [key for key in comparison.data.metrics if key.startswith("system/")], "timed work is not watched"


def test_each_node_of_a_cluster_logs_its_system_metrics_to_the_run(
    nodes: Any, plain: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    options = ("--workers", "3", "--cpus-per-worker", "2", "--ray", nodes.address)  # one on each node
    finish(start("evaluate", *TOY, *options, "--output", "out"))
    assert bytes_of(workplace / "out") == plain
    (comparison,) = comparison_runs()
    logged = {key.split("/")[1] for key in comparison.data.metrics if re.match("system/.+/cpu_utiliz", key)}
    assert logged == {f"{platform.node()}-{node.node_id[:8]}" for node in nodes.list_all_nodes()}
    assert "system/cpu_utilization_percentage" in comparison.data.metrics


def test_a_unit_that_kills_three_workers_has_failed_and_the_others_go_on(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    from specexp.workers.ray_cluster import connected  # it imports Ray

    with connected(WorkerSettings(2, nodes.address), FatalJob(5)) as pool:
        crew = Crew(pool, 2)
        assert crew.first()["run"] == "a" * 32
        outcomes = list(crew.do(range(12)))
        assert actors()
    assert not actors()
    assert [each.result for each in outcomes] == [None if i == 5 else i**2 for i in range(12)]
    assert [len(each.deaths) for each in outcomes] == [3 if i == 5 else 0 for i in range(12)]
    assert "died" in outcomes[5].deaths[0]


def test_a_unit_takes_three_calls_of_ray_whose_messages_are_bytes(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from specexp.workers import ray_cluster  # it imports Ray

    calls: dict[str, list[Any]] = {"wait": [], "get": [], "submit": []}

    def watched(name: str, call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            calls[name].append(result)
            return result

        return counted

    with ray_cluster.connected(WorkerSettings(2, nodes.address), FatalJob(-1, refused=50)) as pool:
        crew = Crew(pool, 2)
        crew.first()
        while len(crew.facts) < 2:
            crew.one(0)
        for name in ("wait", "get"):
            monkeypatch.setattr(ray_cluster.ray, name, watched(name, getattr(ray_cluster.ray, name)))
        monkeypatch.setattr(ray_cluster.pickle, "dumps", watched("submit", pickle.dumps))
        assert [each.result for each in crew.do(range(40))] == [i**2 for i in range(40)]
        empty = sum(not ready for ready, _ in calls["wait"])  # a second without a result, on a busy machine
        assert (len(calls["wait"]) - empty, len(calls["get"]), len(calls["submit"])) == (40, 40, 40)
        assert {type(message) for message in calls["get"]} == {bytes}
        with pytest.raises(ModelError, match=r"^no room for 50\.$"):
            list(crew.do([50]))


@pytest.mark.parametrize("sampled", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_certificate_is_that_of_one_process(sampled: bool, nodes: Any, workplace: Path) -> None:
    asked = (*CERTIFIED, "--temperature", "0.8", "--samples", "1000") if sampled else CERTIFIED
    finish(start("certify", *asked, "--output", "one"))
    process = start("certify", *asked, "--workers", "2", "--ray", nodes.address, "--output", "two")
    while process.poll() is None and not (workplace / "two/checks.json").exists():
        time.sleep(0.01)
    victims = actors()
    if process.poll() is None and victims:
        victims[0].kill()
    finish(process)
    for name in ("certificate.json", "checks.json"):
        assert (workplace / "two" / name).read_bytes() == (workplace / "one" / name).read_bytes(), name
    assert not actors()


@pytest.mark.nightly
def test_advise_measures_on_workers_what_it_does_not_time(nodes: Any, workplace: Path) -> None:
    finish(start("advise", *ADVISED, "--output", "one"))
    finish(start("advise", *ADVISED, "--workers", "2", "--ray", nodes.address, "--output", "two"))
    untimed = []
    for folder in ("one", "two"):
        units = [json.loads(line) for line in (workplace / folder / "progress.jsonl").read_text().splitlines()]
        kept = {str(each["key"]): each["value"] for each in units if each["key"][0] in ("plain", "draft", "watched")}
        untimed.append(kept)
    assert untimed[0] == untimed[1]
    assert untimed[0]
    assert not actors()


@pytest.mark.at_most(fast=1, slow=0)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "num_kills,number",
    [(3, 3), pytest.param(20, 3, marks=pytest.mark.nightly), pytest.param(20, 2, marks=pytest.mark.nightly)],
)
def test_workers_that_are_killed_lose_and_double_nothing(
    num_kills: int, number: int, where: str, nodes: Any, plain: list[str], workplace: Path
) -> None:
    more = ("--limit", "300") if num_kills > 3 else ()
    if more:
        finish(start("evaluate", *TOY, *more, "--output", "one"))
        plain = bytes_of(workplace / "one")
    process = start(
        "evaluate", *TOY, *more, "--workers", str(number), "--ray", address(nodes, where), "--output", "out"
    )
    # At random, but so far apart that no prompt loses three workers: what was lost goes first, and is written soon.
    stretch, rng = len(plain) // (num_kills + 2), random.Random(num_kills + number)
    places = [stretch * (i + 1) + rng.randrange(stretch // 2) for i in range(num_kills)]
    killed = killed_while_it_runs(process, workplace / "out/records.jsonl", places)
    output = finish(process)
    assert killed == num_kills
    assert "has failed" not in output
    assert bytes_of(workplace / "out") == plain


@pytest.mark.parametrize("where", WHERE_TOO)
def test_a_driver_that_is_killed_goes_on_from_its_folder(
    where: str, nodes: Any, plain: list[str], workplace: Path
) -> None:
    options = (*TOY, "--workers", "2", "--ray", address(nodes, where), "--output", "out")
    process = start("evaluate", *options)
    while process.poll() is None and num_lines(workplace / "out/records.jsonl") < 30:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 0 < num_lines(workplace / "out/records.jsonl") < len(plain)
    finish(start("evaluate", *options, "--resume"))
    assert bytes_of(workplace / "out") == plain


@pytest.mark.parametrize("where", WHERE_TOO)
def test_ctrl_c_ends_the_workers(where: str, nodes: Any, workplace: Path) -> None:
    process = start("evaluate", *TOY, "--workers", "2", "--ray", address(nodes, where), "--output", "out")
    while process.poll() is None and num_lines(workplace / "out/records.jsonl") < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130, output
    assert "interrupted; what was recorded stays. Go on with --resume" in output
    assert not actors()


@pytest.mark.parametrize("where", WHERE_TOO)
def test_labels_are_those_of_one_process_with_a_kill_and_without(where: str, nodes: Any, workplace: Path) -> None:
    finish(start("collect_labels", *MINED, "--output", "one"))
    process = start("collect_labels", *MINED, "--workers", "2", "--ray", address(nodes, where), "--output", "two")
    while process.poll() is None and not list((workplace / "two/progress").glob("*.safetensors")):
        time.sleep(0.01)
    victims = actors()
    if process.poll() is None and victims:
        victims[0].kill()
    finish(process)
    for path in sorted((workplace / "one").glob("labels*")) + sorted((workplace / "one").glob("features*")):
        assert (workplace / "two" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (workplace / "two/failures.json").exists()


@pytest.mark.nightly
def test_mlflow_runs_mining_on_a_cluster_from_outside(nodes: Any, workplace: Path) -> None:
    finish(start("collect_labels", *MINED, "--output", "one"))
    options = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(MINED[::2], MINED[1::2], strict=True)
    }
    options |= {"workers": "2", "ray": address(nodes, WHERE[1]), "output": str(workplace / "two")}
    given = [part for name, value in options.items() for part in ("-P", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "run",
        str(ROOT),
        "--env-manager",
        "local",
        "-e",
        "collect_labels",
        *given,
    ]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    finish(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for name in ("labels.parquet", "features.safetensors", "config.json", "manifest.json"):
        assert (workplace / "two" / name).read_bytes() == (workplace / "one" / name).read_bytes(), name
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.mlflow.project.entryPoint != ''"
    ).run_id
    assert mlflow.get_run(run).info.status == "FINISHED"
    assert mlflow.get_run(run).data.params["workers"] == "2"


def test_a_cluster_that_cannot_be_reached_is_one_sentence(workplace: Path) -> None:
    process = start("evaluate", *TOY, "--workers", "2", "--ray", "127.0.0.1:1", "--output", "out")
    output = process.communicate()[0]
    assert process.returncode == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert line.startswith("error: ray is 127.0.0.1:1, which cannot be reached: ")
    assert not (workplace / "out").exists()


def test_a_head_that_is_slow_to_start_a_clients_server_is_asked_again(
    nodes: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.util.client.worker import Worker as Client

    from specexp.workers.ray_cluster import ATTEMPTS, connected  # it imports Ray

    reason = "RuntimeError: Proxy failed to Connect to backend!"
    asked, server_init = [0], Client._server_init

    def slow(client: Any, *arguments: Any, **options: Any) -> None:
        asked[0] += 1
        if asked[0] % (ATTEMPTS + 1):
            raise ConnectionAbortedError(f"Initialization failure from server:\nTraceback:\n{reason}\n")
        server_init(client, *arguments, **options)

    monkeypatch.setattr(Client, "_server_init", slow)
    settings = WorkerSettings(1, address(nodes, WHERE[1]))
    refused = pytest.raises(WorkerError, match=f"cannot be reached: Initialization failure from server: {reason}")
    with refused, connected(settings, FatalJob(-1)):
        pass
    asked[0] = 1
    with connected(settings, FatalJob(-1)) as pool:
        assert next(iter(Crew(pool, 1).do([3]))).result == 9
    assert capsys.readouterr().err.count("asking again") == 2 * (ATTEMPTS - 1)


def test_more_workers_than_this_machine_has_are_refused(workplace: Path) -> None:
    options = ("--workers", "2", "--cpus-per-worker", "1000", "--ray", "local", "--output", "out")
    process = start("evaluate", *TOY, *options)
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert "error: 2 workers of 1000 CPUs need 2000, and this machine has " in output
    assert not (workplace / "out").exists()
