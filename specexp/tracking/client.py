"""Writes to MLflow: the comparison run, and one method run per method and setting.

Everything is written after timing, in batches, from the specs in the output folder, so that an interrupted upload can
be repeated. Each run is created once: it has a key, set at its creation, by which a later attempt finds it again.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow import entities
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from specexp import signals
from specexp.errors import OutputError, StoreError
from specexp.storage.run_plan import File, Input, RunSpec, RunUpdate, now
from specexp.tasks.example import Dataset
from specexp.tracking import backend
from specexp.tracking.search import KEY, MOST, all_of, finished, is_active, search_runs

_GENERATED_NAME = re.compile(r"^[a-z]+-[a-z]+-\d+$")  # names that MLflow generates for unnamed runs
_BATCH = 100  # limit of params and of tags per log_batch call


def attached() -> bool:
    """True if `mlflow run` created a run for this process."""
    return bool(os.environ.get("MLFLOW_RUN_ID"))


def begin(key: str, name: str, tags: Mapping[str, str], system_metrics: bool | None = None) -> Run:
    """Start the run that summarizes several runs: the one that `mlflow run` created, or a new one.

    Earlier runs with this key, from interrupted attempts, are closed as KILLED if they are still open, and the newest
    is linked. `system_metrics` says whether MLflow logs system metrics; None leaves that to MLflow's own settings.
    """
    client = MlflowClient()
    # MLflow removes the id from the environment before its request to the store, which may have to be retried.
    given = os.environ.get("MLFLOW_RUN_ID") or None
    before = [run for run in all_of(client, key, MOST) if run.info.run_id != given]
    tags = {KEY: key, **tags}
    if before:
        tags["resumed_from"] = before[0].info.run_id
    for run in before:
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")
    how = {"run_id": given, "run_name": None if given else name, "log_system_metrics": system_metrics}
    with signals.held():
        backend.with_retries(lambda: mlflow.start_run(tags=dict(tags), **how))
        run = mlflow.active_run()
        os.environ.pop("MLFLOW_RUN_ID", None)
    delete_doubles(key, {run.info.run_id, *(each.info.run_id for each in before)})
    if given and _GENERATED_NAME.match(run.info.run_name or ""):
        backend.with_retries(lambda: mlflow.set_tag("mlflow.runName", name))
    return run


@contextmanager
def comparison(key: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Start a main run without a saved plan; it ends as FAILED if the block raises an exception."""
    try:
        yield str(begin(key, name, tags).info.run_id)
    except BaseException:
        close((key,))
        raise
    end("FINISHED")


def end(status: str) -> None:
    """End the run that `begin` started, if there is one."""
    if mlflow.active_run() is not None:
        with signals.held():
            mlflow.end_run(status)


def close(keys: Collection[str]) -> None:
    """End the active run, and all other open runs with these keys, as FAILED, if the store permits it.

    The store may be the reason for the failure; so the requests have short timeouts.
    """
    with suppress(StoreError), backend.translate_errors(StoreError), backend.briefly():
        end("FAILED")
        client = MlflowClient()
        for run in search_runs(client, "attributes.status = 'RUNNING'", MOST):
            if run.data.tags.get(KEY) in keys:
                client.set_terminated(run.info.run_id, "FAILED")


def make(spec: RunSpec, experiment: str) -> Run:
    """Create an empty run for this spec."""
    return MlflowClient().create_run(experiment, run_name=spec.name, tags={KEY: spec.key, **spec.tags})


def delete_doubles(key: str, keep: Collection[str]) -> None:
    """Delete empty runs with this key, which were created when the answer to an earlier request was lost."""
    client = MlflowClient()
    for other in all_of(client, key, MOST):
        empty = not other.data.metrics and other.info.status in ("RUNNING", "FAILED")
        if empty and other.info.run_id not in keep:
            client.delete_run(other.info.run_id)


def fill(run_id: str, spec: RunSpec, folder: Path) -> None:
    """Log all contents of the spec to a run, with files from `folder`, and finish it. Existing metrics are skipped.

    A held signal is delivered between two steps.
    """
    client = MlflowClient()
    there = client.get_run(run_id).data.metrics
    tags = [RunTag(key, value) for key, value in {KEY: spec.key, **spec.tags}.items()]
    params = [Param(key, value) for key, value in spec.params.items()]
    new = [Metric(k, v, spec.time, 0) for k, v in spec.metrics.items() if k not in there]
    new += [Metric(each.name, each.value, spec.time, each.step) for each in spec.series if each.name not in there]
    client.log_batch(run_id, metrics=new, tags=tags)
    for start in range(0, len(params), _BATCH):
        client.log_batch(run_id, params=params[start : start + _BATCH])
    signals.check()
    if spec.inputs:
        client.log_inputs(run_id, datasets=[_input(each, run_id) for each in spec.inputs])
    put(run_id, spec.files, folder)
    signals.check()
    client.set_terminated(run_id, "FINISHED")


def put(run_id: str, files: Sequence[File], folder: Path) -> None:
    """Log files of `folder` as artifacts of a run; they replace artifacts of the same names."""
    for file in files:
        signals.check()
        path = folder / file.path
        with tempfile.TemporaryDirectory() as scratch:
            if file.only:
                path = Path(scratch) / path.name
                with path.open("w", encoding="utf-8") as some:
                    some.writelines(_lines(folder / file.path, file.only))
            MlflowClient().log_artifact(run_id, str(path), file.to or None)


def _lines(path: Path, only: Mapping[str, Any]) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            result = json.loads(line)
            if all(result[key] == value for key, value in only.items()):
                yield line


def _input(dataset: Input, run_id: str) -> DatasetInput:
    """Convert a dataset for MLflow, which keeps 36 characters of a digest."""
    result = entities.Dataset(
        name=dataset.name,
        digest=dataset.digest[:32],
        source_type=dataset.source_type,
        source=json.dumps({"uri": dataset.source.replace("{run_id}", run_id), "sha256": dataset.digest}),
        profile=json.dumps({"num_rows": dataset.num_rows}),
    )
    return DatasetInput(result, [InputTag("mlflow.data.context", dataset.context)])


def update_runs(asked: RunUpdate) -> int:
    """Add metrics and tags to the runs that the update selects; returns their number."""
    # None and empty values are not logged as parameters.
    wanted = {key: "" if value == "None" else value for key, value in asked.params.items()}
    runs = finished(asked.where)
    run_ids = [run_id for run_id, params in runs if all(params.get(key, "") == value for key, value in wanted.items())]
    for run_id in run_ids:
        MlflowClient().log_batch(
            run_id,
            metrics=[Metric(key, value, asked.time, 0) for key, value in asked.metrics.items()],
            tags=[RunTag(key, value) for key, value in asked.tags.items()],
        )
    return len(run_ids)


def log_settings(run_id: str, settings: Mapping[str, object]) -> None:
    """Log further parameters of a run."""
    MlflowClient().log_batch(run_id, params=[Param(key, str(value)) for key, value in settings.items()])


def add(run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Add metrics and tags to a run."""
    MlflowClient().log_batch(
        run_id,
        metrics=[Metric(key, value, now(), 0) for key, value in metrics.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )


def log_dataset(run_id: str, dataset: Dataset, context: str) -> None:
    """Log a further dataset input of a run; `context` is MLflow's dataset context."""
    MlflowClient().log_inputs(run_id, datasets=[_input(Input.of(dataset, context), run_id)])


def fetch(address: str, folder: Path) -> Path:
    """Download artifacts by URI (runs:/ID/name) into `folder`. Raises OutputError."""
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(folder)))
    except (mlflow.MlflowException, OSError, ValueError) as error:
        words = backend.words(error)
        raise OutputError(
            f"'{address}' could not be downloaded from the store at {backend.address()}: {words}."
        ) from error


@contextmanager
def detached() -> Iterator[None]:
    """Within the context, new runs do not use the run that `mlflow run` created for this process; later code can."""
    outer = os.environ.pop("MLFLOW_RUN_ID", None)
    try:
        yield
    finally:
        if outer is not None:
            os.environ["MLFLOW_RUN_ID"] = outer


def chart_address(run_id: str) -> str:
    """The URL at which the MLflow UI shows the runs of this experiment as charts."""
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    base = backend.address()
    host = base.rstrip("/") if base.startswith("http") else "http://127.0.0.1:5000"
    return f"{host}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"


Log = Callable[[Mapping[str, float], int], None]
PARENT = "mlflow.parentRunId"  # the tag that makes a run the child of another


@contextmanager
def reopened(run_id: str) -> Iterator[None]:
    """Make a finished run the active one within the context."""
    with detached():
        mlflow.start_run(run_id=run_id)
        try:
            yield
        finally:
            end("FINISHED")


@contextmanager
def training(
    name: str, tags: Mapping[str, str], params: Mapping[str, object], key: str, before: str | None = None
) -> Iterator[tuple[str, Log]]:
    """Start the run of one training; yields its id and `log(metrics, step)`.

    `before` is the run of an interrupted attempt, which is continued if this store still has it; steps that it logged
    are not logged again. Other open runs with this key are closed as KILLED: only one process trains under a key.
    """
    client = MlflowClient()
    known = is_active(client, before)
    last: dict[str, int] = {}

    def log(metrics: Mapping[str, float], step: int) -> None:
        for key in metrics.keys() - last.keys():
            last[key] = max((m.step for m in client.get_metric_history(run_id, key)), default=-1)
        mlflow.log_metrics({key: value for key, value in metrics.items() if step > last[key]}, step=step)

    with detached():  # the run that `mlflow run` created covers several trainings
        try:
            for run in all_of(client, key, MOST):
                if run.info.status == "RUNNING" and run.info.run_id != before:
                    client.set_terminated(run.info.run_id, "KILLED")
            with signals.held():
                given = {"run_id": before} if known else {"run_name": name, "tags": {KEY: key, **tags}}
                run_id = str(mlflow.start_run(**given).info.run_id)
            if not known:
                mlflow.log_params(dict(params))
            yield run_id, log
        except BaseException:
            close((key,))
            raise
        end("FINISHED")
