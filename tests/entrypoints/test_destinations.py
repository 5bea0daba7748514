"""Runs that the store cannot take where the environment says are refused before anything is loaded or decoded."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from mlflow.tracking import MlflowClient

from helpers.cli_runner import evaluate, invoke, runs
from helpers.judges import label_set
from helpers.tracking_server import serving
from helpers.uploads import TOY, failing, upload
from specexp.evaluation import preparation

UNKNOWN = "0123456789abcdef0123456789abcdef"


def deleted_experiment(name: str = "old") -> str:
    client = MlflowClient()
    number = str(client.create_experiment(name))
    client.delete_experiment(number)
    return number


def deleted_run() -> str:
    client = MlflowClient()
    run_id = str(client.create_run("0").info.run_id)
    client.delete_run(run_id)
    return run_id


def run_of_a_deleted_experiment() -> str:
    client = MlflowClient()
    number = client.create_experiment("older")
    run_id = str(client.create_run(number).info.run_id)
    client.delete_experiment(number)
    client.restore_run(run_id)
    return run_id


# What the environment says, and what is said of it; {0} is the id that was made.
Case = tuple[Callable[[], str], dict[str, str], str]
CASES: dict[str, Case] = {
    "an unknown experiment id": (str, {"MLFLOW_EXPERIMENT_ID": "999"}, "MLFLOW_EXPERIMENT_ID is '999', and the"),
    "no experiment id": (str, {"MLFLOW_EXPERIMENT_ID": "abc"}, "MLFLOW_EXPERIMENT_ID is 'abc', and the tracking"),
    "the id of a deleted experiment": (
        deleted_experiment, {"MLFLOW_EXPERIMENT_ID": "{0}"},
        "MLFLOW_EXPERIMENT_ID names experiment 'old' ({0}), which is deleted in the tracking store at",
    ),
    "the name of a deleted experiment": (
        deleted_experiment, {"MLFLOW_EXPERIMENT_NAME": "old"},
        "restore it (mlflow experiments restore --experiment-id {0}), or name another one in MLFLOW_EXPERIMENT_NAME.",
    ),
    "an empty name": (str, {"MLFLOW_EXPERIMENT_NAME": ""}, "MLFLOW_EXPERIMENT_NAME is empty; it must have 1 to 500"),
    "a long name": (str, {"MLFLOW_EXPERIMENT_NAME": "x" * 501}, "MLFLOW_EXPERIMENT_NAME has 501 characters; it must"),
    "a name and another id": (
        lambda: str(MlflowClient().create_experiment("new")),
        {"MLFLOW_EXPERIMENT_NAME": "new", "MLFLOW_EXPERIMENT_ID": "0"},
        "MLFLOW_EXPERIMENT_ID is '0', but MLFLOW_EXPERIMENT_NAME 'new' is experiment {0}",
    ),
    "an unknown run": (str, {"MLFLOW_RUN_ID": UNKNOWN}, f"MLFLOW_RUN_ID is '{UNKNOWN}', and the tracking store at"),
    "no run id": (str, {"MLFLOW_RUN_ID": "not/a run"}, "MLFLOW_RUN_ID is 'not/a run', and the tracking store at"),
    "a deleted run": (deleted_run, {"MLFLOW_RUN_ID": "{0}"}, "(mlflow runs restore --run-id {0}), or unset"),
    "a run of a deleted experiment": (
        run_of_a_deleted_experiment, {"MLFLOW_RUN_ID": "{0}"}, "MLFLOW_RUN_ID is of experiment 'older' (",
    ),
}  # fmt: skip


def refused_at_once(case: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    make, environment, message = CASES[case]
    made = make()
    with (
        monkeypatch.context() as patch,
        mock.patch.object(preparation, "prepare", side_effect=AssertionError("loaded")),
    ):
        for name, value in environment.items():
            patch.setenv(name, value.format(made))
        result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    assert message.format(made) in line
    assert not (folder / "out").exists()


@pytest.mark.parametrize("case", CASES)
def test_evaluate_refuses_a_destination_that_takes_no_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    refused_at_once(case, monkeypatch, workplace)


def test_the_default_experiment_may_be_deleted_too(workplace: Path) -> None:
    MlflowClient().delete_experiment("0")
    result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 2
    assert "error: runs go to experiment 'Default' (0), which is deleted in the tracking store at" in result.output


COMMANDS = {
    "evaluate": [],
    "main": ["--limit", "2"],
    "collect_labels": ["--limit", "2"],
    "train_drafter": [],
    "train_judge": ["--labels", "labels"],
    "calibrate_rule": ["--labels", "labels"],
    "judge_report": ["--labels", "labels"],
    "certify": [],
    "advise": [],
    "benchmark": ["--quick"],
    "log_decoder": [],
    "train_pair": ["--work", "work"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_to_the_store_refuses_first(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    deleted_experiment()
    label_set(workplace / "labels")
    before = sorted(path.name for path in workplace.iterdir())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "old")
    output = [] if command == "log_decoder" else ["--output", "out"]
    result = invoke(importlib.import_module(f"entrypoints.{command}").command, *COMMANDS[command], *output)
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    assert "MLFLOW_EXPERIMENT_NAME names experiment 'old'" in line
    assert sorted(path.name for path in workplace.iterdir()) == before, "something was written"
    assert not runs()


@pytest.mark.slow
def test_upload_refuses_the_experiment_that_was_deleted_meanwhile(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "night")
    with failing(behind=0):
        assert evaluate(*TOY, "--output", "out").exit_code == 3
    (number,) = (e.experiment_id for e in MlflowClient().search_experiments(filter_string="name = 'night'"))
    MlflowClient().delete_experiment(number)
    result = upload()
    assert result.exit_code == 2
    assert f"MLFLOW_EXPERIMENT_NAME names experiment 'night' ({number}), which is deleted" in result.output
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "day")
    assert upload().exit_code == 0


@pytest.mark.slow
def test_ids_that_are_another_folders_are_not_taken(workplace: Path) -> None:
    """A run that carries another key is another folder's, whatever mlflow.json says."""
    foreign = MlflowClient().create_run("0", tags={"specexp.key": "another/comparison"})
    with failing(behind=1):
        assert evaluate(*TOY, "--output", "out").exit_code == 3
    path = workplace / "out" / "mlflow.json"
    state = json.loads(path.read_text())
    state["runs"] = dict.fromkeys(state["runs"], foreign.info.run_id)
    path.write_text(json.dumps(state))
    assert upload().exit_code == 0
    assert MlflowClient().get_run(foreign.info.run_id).data.metrics == {}
    assert MlflowClient().get_run(foreign.info.run_id).data.tags["specexp.key"] == "another/comparison"


@pytest.mark.nightly
def test_a_server_is_asked_first_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        monkeypatch.chdir(tmp_path)
        for number, case in enumerate(CASES):
            refused_at_once(case, monkeypatch, tmp_path)
            for name in ("old", "older", "new"):  # the next case makes its own
                experiment = MlflowClient().get_experiment_by_name(name)
                if experiment is not None and experiment.lifecycle_stage == "deleted":
                    MlflowClient().restore_experiment(experiment.experiment_id)
                if experiment is not None:
                    MlflowClient().rename_experiment(experiment.experiment_id, f"{name} {number}")
        assert not runs()
