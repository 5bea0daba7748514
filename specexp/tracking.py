"""What specexp writes to MLflow: the comparison run, and one flat run per method and setting.

Everything is written after timing, in batches. Runs are made once: each carries a key, set as it is made, by which a
later attempt finds it again.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
from mlflow import entities
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from pandas import DataFrame

from specexp.errors import OutputError
from specexp.tasks.example import Dataset

KEY = "specexp.key"  # tag: names one run of one output folder
_GENERATED_NAME = re.compile(r"^[a-z]+-[a-z]+-\d+$")  # what MLflow calls a run that nobody named
_BATCH = 100  # params and tags a log_batch call takes


@dataclass(frozen=True, slots=True)
class RunContent:
    """All that one flat run holds."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, object]
    metrics: Mapping[str, float]
    files: Sequence[Path] = ()
    dataset: Dataset | None = None
    tables: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)  # columns by artifact name


def find(key: str, finished: bool = False) -> str | None:
    """Id of the newest run that carries this key, in any experiment of the store."""
    run = _newest(MlflowClient(), key)
    return None if run is None or (finished and run.info.status != "FINISHED") else str(run.info.run_id)


def attached() -> bool:
    """Whether `mlflow run` made a run for this process."""
    return "MLFLOW_RUN_ID" in os.environ


@contextmanager
def comparison(key: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """The comparison run: the one `mlflow run` made, or a new one; FAILED if the block is left by an exception.

    An earlier run of this key, from an interrupted attempt, is closed as KILLED if it still stands open, and linked.
    """
    client = MlflowClient()
    before = _newest(client, key)
    tags = {KEY: key, **tags}
    if before is not None and before.info.run_id != os.environ.get("MLFLOW_RUN_ID"):
        tags["resumed_from"] = before.info.run_id
        if before.info.status == "RUNNING":
            client.set_terminated(before.info.run_id, "KILLED")
    given = attached()
    with mlflow.start_run(run_name=None if given else name, tags=None if given else tags) as run:
        if given:
            mlflow.set_tags(tags)
            if _GENERATED_NAME.match(run.info.run_name or ""):
                mlflow.set_tag("mlflow.runName", name)
        yield str(run.info.run_id)


def _newest(client: MlflowClient, key: str) -> Run | None:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{KEY}` = '{key}'", max_results=1, order_by=["start_time DESC"])
    return found[0] if found else None


def log_comparison(
    run_id: str, metrics: Mapping[str, float], files: Sequence[Path], dataset: Dataset, verdict: Sequence[str] = ()
) -> None:
    """Metrics, files and data of the comparison run; the first sentence of a verdict is a tag, all are its description.

    Its parameters are those that `mlflow run` logs, raw.
    """
    tags = {"verdict": verdict[0], "mlflow.note.content": "\n\n".join(verdict)} if verdict else {}
    _fill(MlflowClient(), run_id, RunContent("", tags, {}, metrics, files, dataset))


def log_flat(key: str, content: RunContent, parent_id: str) -> str:
    """Make the flat run that `key` names, or finish it if it was begun; leave a finished one alone. Returns its id."""
    client = MlflowClient()
    found = _newest(client, key)
    if found is not None and found.info.status == "FINISHED":
        return str(found.info.run_id)
    if found is None:
        experiment = client.get_run(parent_id).info.experiment_id
        found = client.create_run(experiment, run_name=content.name, tags={KEY: key, **content.tags})
    _fill(client, found.info.run_id, content, skip_metrics=bool(found.data.metrics))
    client.set_terminated(found.info.run_id, "FINISHED")
    return str(found.info.run_id)


def _fill(client: MlflowClient, run_id: str, content: RunContent, skip_metrics: bool = False) -> None:
    now = int(time.time() * 1000)
    params = [Param(key, str(value)) for key, value in content.params.items() if value not in (None, "")]
    metrics = [Metric(key, float(value), now, 0) for key, value in content.metrics.items()]
    if content.tags:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in content.tags.items()])
    for start in range(0, len(params), _BATCH):
        client.log_batch(run_id, params=params[start : start + _BATCH])
    if not skip_metrics:
        client.log_batch(run_id, metrics=metrics)
    if content.dataset is not None:
        client.log_inputs(run_id, datasets=[_input(content.dataset, "evaluation")])
    for path in content.files:
        client.log_artifact(run_id, str(path))
    there = {file.path for file in client.list_artifacts(run_id)} if content.tables else set()
    for name, columns in content.tables.items():
        if name not in there:  # MLflow would put the rows behind those of an attempt before
            client.log_table(run_id, DataFrame(dict(columns), dtype=object), name)


def _input(dataset: Dataset, context: str) -> DatasetInput:
    """A task's data as an MLflow dataset; MLflow keeps 36 characters of a digest."""
    found = entities.Dataset(
        name=dataset.name,
        digest=dataset.digest[:32],
        source_type="local" if Path(dataset.source).exists() else "external",
        source=json.dumps({"uri": dataset.source, "sha256": dataset.digest}),
        profile=json.dumps({"num_rows": dataset.num_rows}),
    )
    return DatasetInput(found, [InputTag("mlflow.data.context", context)])


def log_settings(run_id: str, settings: Mapping[str, object]) -> None:
    """Further parameters of a run."""
    MlflowClient().log_batch(run_id, params=[Param(key, str(value)) for key, value in settings.items()])


def log_folder(run_id: str, name: str, paths: Sequence[Path]) -> None:
    """Files below `name` among a run's artifacts."""
    for path in paths:
        MlflowClient().log_artifact(run_id, str(path), name)


def log_dataset(run_id: str, dataset: Dataset, context: str) -> None:
    """A further input of a run; `context` says what it is to it."""
    MlflowClient().log_inputs(run_id, datasets=[_input(dataset, context)])


def newest(tags: Mapping[str, str]) -> str | None:
    """Id of the newest finished run with these tags, in any experiment of the store."""
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs(
        experiments, f"{wanted} and attributes.status = 'FINISHED'", max_results=1, order_by=["start_time DESC"]
    )
    return str(found[0].info.run_id) if found else None


def finished(tags: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Id and parameters of every finished run with these tags, in any experiment of the store."""
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found: list[tuple[str, dict[str, str]]] = []
    token = None
    while True:
        page = client.search_runs(experiments, f"{wanted} and attributes.status = 'FINISHED'", page_token=token)
        found += [(str(run.info.run_id), dict(run.data.params)) for run in page]
        token = page.token
        if not token:
            return found


def tag(run_id: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
    """Add tags and metrics to a run, in the place of those of the same names."""
    now = int(time.time() * 1000)
    MlflowClient().log_batch(
        run_id,
        metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )


def fetch(address: str, folder: Path) -> Path:
    """Artifacts by address (runs:/ID/name), downloaded below `folder`. Raises OutputError."""
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(folder)))
    except (mlflow.MlflowException, OSError, ValueError) as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OutputError(f"'{address}' is not in the store at {mlflow.get_tracking_uri()}: {words}") from error


@contextmanager
def detached() -> Iterator[None]:
    """Inside, runs are of their own: the run that `mlflow run` made for this process is kept for what comes after."""
    outer = os.environ.pop("MLFLOW_RUN_ID", None)
    try:
        yield
    finally:
        if outer is not None:
            os.environ["MLFLOW_RUN_ID"] = outer


def chart_address(run_id: str) -> str:
    """Where `make ui` shows the runs of this experiment as charts."""
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    base = mlflow.get_tracking_uri()
    host = base.rstrip("/") if base.startswith("http") else "http://127.0.0.1:5000"
    return f"{host}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"


Log = Callable[[Mapping[str, float], int], None]


@contextmanager
def training(
    name: str, tags: Mapping[str, str], params: Mapping[str, object], before: str | None
) -> Iterator[tuple[str, Log]]:
    """The run of one training: its id, and `log(metrics, step)`.

    `before` is the run of an interrupted attempt, which goes on if this store still has it; what it logged is not
    logged again.
    """
    client = MlflowClient()
    known = _active(client, before)
    last: dict[str, int] = {}
    # The run that `mlflow run` made covers several trainings.
    with detached(), mlflow.start_run(run_id=before if known else None, run_name=None if known else name) as run:
        run_id = str(run.info.run_id)
        if not known:
            mlflow.set_tags(dict(tags))
            mlflow.log_params(dict(params))

        def log(metrics: Mapping[str, float], step: int) -> None:
            for key in metrics.keys() - last.keys():
                last[key] = max((m.step for m in client.get_metric_history(run_id, key)), default=-1)
            mlflow.log_metrics({key: value for key, value in metrics.items() if step > last[key]}, step=step)

        yield run_id, log


def _active(client: MlflowClient, run_id: str | None) -> bool:
    try:
        return run_id is not None and client.get_run(run_id).info.lifecycle_stage == "active"
    except mlflow.MlflowException:
        return False  # another store
