"""A tracking store that goes away loses nothing: what was to be logged is on disk, and is uploaded once, later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from entrypoints.collect_labels import command as collect_labels
from entrypoints.train_judge import command as train_judge
from helpers.cli_runner import comparison_runs, evaluate, flat_runs, invoke, records, refused, runs
from helpers.judges import label_set
from helpers.tracking_server import serving
from helpers.uploads import DEAD, TOY, all_held, answering, failing, undisturbed, upload
from specexp.tracking import backend

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second try of a request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_a_store_that_is_not_there_stops_no_decoding(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    here = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD.replace("//", "//me:secret@"))
    result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 3
    assert isinstance(result.exception, SystemExit)
    assert "secret" not in result.output
    first = result.output.splitlines()[0]
    (last,) = (line for line in result.output.splitlines() if line.startswith("error: "))
    assert first.startswith(f"note: the tracking store at {DEAD} does not answer (Connection refused).")
    assert last.startswith(f"error: the runs of 'out' are not all in the tracking store at {DEAD}: Connection refused.")
    assert last.endswith("When the store answers: python -m specexp upload --output out")
    assert len(records(workplace / "out")) == 4
    assert (workplace / "out" / "report.html").exists()
    again = upload()
    assert again.exit_code == 3
    assert again.output == f"{last}\n", "nor does an upload lose anything"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    result = upload()
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == f"sent: 3 runs of 'out' to {here}"
    assert sorted(flat_runs()) == ["baseline", "speculative_k3"]
    assert [run.info.status for run in comparison_runs()] == ["FINISHED"]
    before = all_held(workplace / "before")
    assert upload().output == f"nothing to do: the store at {here} has all of 'out'.\n"
    assert evaluate(*TOY, "--output", "out", "--resume").exit_code == 0
    assert all_held(workplace / "after") == before


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("answer_lost", [False, True])
def test_an_upload_that_breaks_off_anywhere_goes_on_without_doubles(
    workplace: Path, empty_store: Path, answer_lost: bool
) -> None:
    with failing(behind=1):  # the comparison run is made, and nothing else is taken
        result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 3, result.output
    assert "secret" not in result.output
    assert "http://tracking/api failed with exception: gone. Nothing is lost" in result.output
    broken = 0
    for writes in range(0, 60, 3):
        with failing(behind=writes, answer_lost=answer_lost):
            result = upload()
        if result.exit_code == 0:
            break
        broken += 1
        assert result.exit_code == 3, result.output
        assert len(result.output.splitlines()) == 1
    assert broken > 5, "the faults hit nothing"
    assert upload().output.startswith("nothing to do")
    assert json.loads((workplace / "out" / "mlflow.json").read_text())["runs"] == {
        run.data.tags["specexp.key"]: run.info.run_id for run in runs()
    }
    assert all_held(workplace / "found") == undisturbed(workplace / "out", workplace, empty_store)


def test_runs_that_were_made_twice_because_an_answer_got_lost_are_one(workplace: Path) -> None:
    real = MlflowClient.create_run

    def twice(*arguments: Any, **more: Any) -> Any:
        real(*arguments, **more)  # whose answer does not arrive: the client asks again
        return real(*arguments, **more)

    with failing(behind=1):
        assert evaluate(*TOY, "--output", "out").exit_code == 3
    with mock.patch.object(MlflowClient, "create_run", twice):
        assert upload().exit_code == 0
    assert sorted(flat_runs()) == ["baseline", "speculative_k3"]


def test_others_that_log_the_same_data_at_once_are_no_failure(workplace: Path) -> None:
    real, calls = MlflowClient.log_inputs, 0

    def race(*arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MlflowException("BAD_REQUEST: (sqlite3.IntegrityError) UNIQUE constraint failed: datasets.digest")
        real(*arguments, **more)

    with mock.patch.object(MlflowClient, "log_inputs", race):
        assert evaluate(*TOY, "--output", "out").exit_code == 0
    assert calls == 4
    for run in all_held(workplace / "found").values():
        assert all(len(history) == 1 for history in run["metrics"].values())


def test_the_run_that_mlflow_made_is_the_one_that_is_uploaded_to(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MlflowClient().create_run("0", run_name="merry-mole-12")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with failing(behind=0):
        assert evaluate(*TOY, "--output", "out").exit_code == 3
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    assert upload().exit_code == 0
    (comparison,) = comparison_runs()
    assert comparison.info.run_id == made.info.run_id
    assert comparison.info.status == "FINISHED"


def test_runs_go_to_the_experiment_they_were_meant_for(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    here = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "night shift")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    assert evaluate(*TOY, "--output", "out").exit_code == 3
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    assert upload().exit_code == 0
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    experiment = MlflowClient().get_experiment_by_name("night shift")
    assert experiment is not None
    assert len(MlflowClient().search_runs([experiment.experiment_id])) == 3


def test_mining_survives_a_store_that_goes_away(workplace: Path) -> None:
    arguments = ["--limit", "3", "--max-new-tokens", "120", "--output", "labels"]
    with failing(behind=1):
        result = invoke(collect_labels, *arguments)
    assert result.exit_code == 3, result.output
    assert (workplace / "labels" / "manifest.json").exists()
    assert upload("--output", "labels").exit_code == 0
    (run,) = runs()
    there = {file.path for file in MlflowClient().list_artifacts(run.info.run_id, "labels")}
    assert there == {f"labels/{name}" for name in ("labels.parquet", "features.safetensors", "manifest.json")}
    sources = {i.dataset.name: json.loads(i.dataset.source)["uri"] for i in run.inputs.dataset_inputs}
    assert sources["labels"] == f"runs:/{run.info.run_id}/labels", "wherever the store is"


def test_a_judge_wants_a_store_and_says_so(workplace: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    label_set(workplace / "labels")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    result = invoke(train_judge, "--labels", "labels", "--output", "judge")
    assert result.exit_code == 2
    assert result.output.startswith(f"error: the tracking store at {DEAD} does not answer (Connection refused)")
    assert not (workplace / "judge").exists()
    result = evaluate("--limit", "1", "--judge", "models:/autojudge@champion", "--output", "out")
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert f"is in the store at {DEAD}, which does not answer: Connection refused. Start it" in line
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace}/mlflow.db")
    with failing(behind=1):
        result = invoke(train_judge, "--labels", "labels", "--output", "judge")
    assert result.exit_code == 3, result.output
    assert result.output.splitlines()[-1].endswith("when the store answers, run the same command again.")


@pytest.mark.parametrize(
    "address,message",
    [
        ("htp://127.0.0.1", "the tracking store at htp://127.0.0.1 cannot be used: "),
        ("sqlite:////proc/no/mlflow.db", "the tracking store at sqlite:////proc/no/mlflow.db cannot be used: "),
    ],
)
def test_an_address_that_is_none_is_refused_before_any_decoding(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    here = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    result = evaluate(*TOY, "--output", "out")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.strip().splitlines()
    assert message in line
    assert not (workplace / "out" / "records.jsonl").exists()


@pytest.mark.parametrize(
    "status,goes_on",
    [(401, False), (403, False), (404, False), (408, True), (429, True), (500, True), (503, True)],
)
def test_a_server_that_refuses_is_none_that_may_come_back(
    monkeypatch: pytest.MonkeyPatch, status: int, goes_on: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    said = MlflowException(f"API request to endpoint /api failed with error code {status} != 200. Response body: ''")
    assert backend.is_unavailable(said) is goes_on


@pytest.mark.parametrize("status,code", [(401, 2), (404, 2), (503, 3)])
def test_a_server_that_answers_with_an_error(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, status: int, code: int
) -> None:
    with answering(status) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == code, result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("error: "))
    assert address in line
    assert str(status) in line
    assert (workplace / "out" / "records.jsonl").exists() is (code == 3)


def test_what_cannot_be_uploaded_is_refused(workplace: Path) -> None:
    refused(upload("--output", "nowhere"), "output 'nowhere' is not a folder", workplace)
    (workplace / "empty").mkdir()
    refused(upload("--output", "empty"), "'empty' has no upload.json", workplace)
    with failing(behind=1):
        assert evaluate(*TOY, "--output", "mine").exit_code == 3
    (workplace / "mine" / "report.html").rename(workplace / "kept.html")
    result = upload("--output", "mine")
    assert result.exit_code == 2
    assert result.output == (
        "error: 'mine' lacks report.html, which upload.json there names; put back what was removed.\n"
    )
    (workplace / "kept.html").rename(workplace / "mine" / "report.html")
    (workplace / "mine" / "upload.json").write_text('{"main": 3}')
    assert "upload.json was changed by hand" in upload("--output", "mine").output


def test_a_programs_own_mistake_is_no_failure_of_the_store(workplace: Path) -> None:
    with mock.patch.object(MlflowClient, "log_batch", side_effect=AssertionError("counts are broken")):
        result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 70, result.output
    assert "this is a bug in specexp: AssertionError: counts are broken" in result.output


# With a server, and with several processes: slow.


def start(folder: Path, address: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTEST_"))}
    environment |= {"MLFLOW_TRACKING_URI": address} if address else {}
    return subprocess.Popen(
        [sys.executable, "-m", "entrypoints", *arguments],
        cwd=folder, env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def four_at_once(folder: Path, address: str) -> None:
    started = [start(folder, address, "evaluate", *TOY, "--output", f"out{i}") for i in range(4)]
    for process in started:
        said, _ = process.communicate()
        assert process.returncode == 0, said
        assert "locked" not in said
        assert "Traceback" not in said


def all_there() -> None:
    result = runs()
    assert all(run.info.status == "FINISHED" for run in result)
    names = sorted(run.info.run_name for run in result)
    assert names == ["baseline"] * 4 + ["compare toy_quick"] * 4 + ["speculative_k3"] * 4
    for run in result:
        there = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
        assert {"records.jsonl", "config.json"} <= there


@pytest.mark.slow
def test_four_at_once_in_an_empty_folder_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four_at_once(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    all_there()


@pytest.mark.nightly
def test_four_at_once_on_one_server_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        four_at_once(tmp_path, server.address)
        all_there()
        assert not (tmp_path / "mlruns").exists(), "artifacts go through the server"


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_logging_gets_the_rest_later_and_once(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    real, calls = MlflowClient.log_artifact, 0
    with serving(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)

        def killing(*arguments: Any, **more: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 7:
                server.kill()
            real(*arguments, **more)

        with mock.patch.object(MlflowClient, "log_artifact", killing):
            result = evaluate(*TOY, "--output", "out")
        assert result.exit_code == 3, result.output
        assert "Traceback" not in result.output
        assert f"at {server.address}: Connection refused. Nothing is lost" in result.output
        server.start()
        assert upload().exit_code == 0
        assert upload().output.startswith("nothing to do")
        by_key = all_held(tmp_path / "found")
    assert len(by_key) == 3
    assert by_key == undisturbed(tmp_path / "out", tmp_path, empty_store)


@pytest.mark.nightly
def test_the_whole_story_of_a_judge_on_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "server") as server:
        for arguments in (
            ["collect_labels", "--limit", "60", "--output", "labels"],
            ["train_judge", "--features", "target"],  # of the newest labels in the store
            ["evaluate", "--judge", "models:/autojudge@champion", "--limit", "2", "--methods",
             "baseline,autojudge", "--output", "out"],
        ):  # fmt: skip
            process = start(tmp_path, server.address, *arguments)
            said, _ = process.communicate()
            assert process.returncode == 0, said
            shutil.rmtree(tmp_path / "labels", ignore_errors=True)  # what comes next has the server alone
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        by_name = flat_runs()
        assert by_name["autojudge"].info.artifact_uri.startswith("mlflow-artifacts:")
        assert not (tmp_path / "mlruns").exists()
        assert not (tmp_path / "mlflow.db").exists()
