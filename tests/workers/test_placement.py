"""Where workers run, who of them shares a device, who logs its node's metrics, and what is kept of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specexp import config
from specexp.storage.run_folder import OutputFolder
from specexp.workers import failures
from specexp.workers.failures import Failure
from specexp.workers.node_metrics import NodeRun, NodeWatch, names_of
from specexp.workers.placement import Placement


def facts(device: str = "m/cpu", node: str = "a", driver: str = "", **more: Any) -> dict[str, Any]:
    return {"environment": {"processor": "x", **more}, "device": device, "node": node, "driver": driver}


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    (tmp_path / "out").mkdir()
    return OutputFolder(tmp_path / "out", config.resolve("toy_quick", {}), True)


def saved(output: OutputFolder) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((output.path / "environments.json").read_text())
    return result


def test_workers_alone_on_their_devices_share_none_and_name_their_nodes(output: OutputFolder) -> None:
    placement, one, other = Placement(output), facts("m/cuda 0", "a"), facts("n/cuda 0", "b")
    placement.changed({1: one, 2: other})
    assert placement.name(one) == placement.name(other)
    ((_, entry),) = saved(output).items()
    assert entry == {"processor": "x", "worker": {"shares_device": False, "driver": "", "nodes": ["a", "b"]}}


def test_once_two_shared_a_device_every_later_record_made_there_says_so(output: OutputFolder) -> None:
    placement, one, other = Placement(output), facts("m/cpu"), facts("n/cpu", "b")
    placement.changed({1: one, 2: other})
    alone = placement.name(one)
    placement.changed({1: one, 2: other, 3: one})
    crowded = placement.name(one)
    placement.changed({1: one, 2: other})
    assert placement.name(one) == crowded != alone
    assert placement.name(other) == alone
    assert saved(output)[crowded]["worker"]["shares_device"] is True


def test_a_name_that_is_only_asked_for_is_not_written(output: OutputFolder) -> None:
    placement, one = Placement(output), facts("m/cpu")
    placement.changed({1: one})
    alone = placement.known_name(one)
    assert not (output.path / "environments.json").exists()
    placement.changed({1: one, 2: facts("m/cpu")})
    assert placement.known_name(one) == placement.name(one) != alone
    assert list(saved(output)) == [placement.name(one)]


def test_other_drivers_and_libraries_are_other_environments(output: OutputFolder) -> None:
    placement = Placement(output)
    names = {placement.name(each) for each in (facts(), facts(driver="550"), facts(packages={"torch": "2"}))}
    assert len(names) == len(saved(output)) == 3


def test_environments_that_a_folder_has_are_kept_with_their_nodes(output: OutputFolder) -> None:
    before = Placement(output).name(facts(node="a"))
    output.write_json("environments.json", {**saved(output), "other": {"processor": "y"}})
    assert Placement(output).name(facts(node="b")) == before
    assert saved(output)["other"] == {"processor": "y"}
    assert saved(output)[before]["worker"]["nodes"] == ["a", "b"]


def test_failures_are_kept_until_nothing_fails(output: OutputFolder) -> None:
    failed = [Failure("p", ["killed", "no memory", "gone"], 1)]
    failures.write(output, failed)
    assert failures.read(output) == failed
    assert failed[0].sentence == "prompt 'p' has failed: 3 workers died at it (gone)"
    failures.write(output, [])
    assert failures.read(output) == []
    assert not (output.path / failures.FILE).exists()


def test_one_worker_on_each_node_logs_and_another_takes_over() -> None:
    watch = NodeWatch()
    assert [watch.started(worker, node) for worker, node in ((1, "a"), (2, "a"), (3, "b"), (4, "a"))] == [
        True, False, True, False,
    ]  # fmt: skip
    assert watch.chosen == [1, 3]
    assert watch.died(4) is None, "it did not log"
    assert watch.died(1) == 2
    assert watch.died(3) is None, "nobody is left there"
    assert watch.died(9) is None, "it never started"
    assert watch.chosen == [2]
    assert watch.node_of(2) == "a"
    assert watch.started(5, "b")


def test_nodes_are_named_by_their_hosts_and_more_where_several_share_one() -> None:
    hosts = {"0123456789": "m", "abcdefghij": "m", "9876543210": "n"}
    assert names_of(hosts) == {"0123456789": "m-01234567", "abcdefghij": "m-abcdefgh", "9876543210": "n"}


@pytest.mark.parametrize(
    "store,reached",
    [("sqlite:///mlflow.db", False), ("file:./mlruns", False), ("http://h:5000", True), ("databricks", True),
     ("postgresql://h/db", True)],
)  # fmt: skip
def test_a_store_in_a_file_is_not_reached_from_other_machines(store: str, reached: bool) -> None:
    assert NodeRun("x", store).is_reached_from_elsewhere is reached
