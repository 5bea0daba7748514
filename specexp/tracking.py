"""What specexp writes to MLflow: the comparison run, and one flat run per method and setting.

Everything is written after timing, in batches. Runs are made once: the output folder names them, and each carries a tag
that finds it again if the process died between making it and noting it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

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


@contextmanager
def comparison(name: str, tags: Mapping[str, str], before: str | None) -> Iterator[str]:
    """The comparison run: the one `mlflow run` made, or a new one; FAILED if the block is left by an exception.

    `before` is the run of an earlier, interrupted attempt: closed as KILLED if it still stands open, and linked.
    """
    client = MlflowClient()
    resumed = _close_stale(client, before) if before and before != os.environ.get("MLFLOW_RUN_ID") else None
    attached = "MLFLOW_RUN_ID" in os.environ
    with mlflow.start_run(run_name=None if attached else name) as run:
        if attached and _GENERATED_NAME.match(run.info.run_name or ""):
            mlflow.set_tag("mlflow.runName", name)
        mlflow.set_tags({**tags, **({"resumed_from": resumed} if resumed else {})})
        yield str(run.info.run_id)


def _close_stale(client: MlflowClient, run_id: str) -> str | None:
    try:
        run = client.get_run(run_id)
    except mlflow.MlflowException:
        return None  # another store; nothing to close there
    if run.info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")
    return run_id


def log_comparison(run_id: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Metrics and files of the comparison run. Its parameters are those that `mlflow run` logs, raw."""
    _fill(MlflowClient(), run_id, RunContent("", {}, {}, metrics, files))


def log_flat(key: str, content: RunContent, parent_id: str) -> str:
    """Make the flat run that `key` names, or finish it if it was begun; leave a finished one alone. Returns its id."""
    client = MlflowClient()
    experiment = client.get_run(parent_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
    if found and found[0].info.status == "FINISHED":
        return str(found[0].info.run_id)
    if found:
        run_id = found[0].info.run_id
    else:
        run_id = client.create_run(experiment, run_name=content.name, tags={KEY: key, **content.tags}).info.run_id
    _fill(client, run_id, content, skip_metrics=bool(found and found[0].data.metrics))
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)


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
    for path in content.files:
        client.log_artifact(run_id, str(path))


def chart_address(run_id: str) -> str:
    """Where `make ui` shows the runs of this experiment as charts."""
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    base = mlflow.get_tracking_uri()
    host = base.rstrip("/") if base.startswith("http") else "http://127.0.0.1:5000"
    return f"{host}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"


@contextmanager
def training(name: str, tags: Mapping[str, str], params: Mapping[str, object], before: str | None) -> Iterator[str]:
    """The run of one training; `before` is the run of an interrupted attempt, which goes on if this store has it."""
    client = MlflowClient()
    try:
        known = bool(before) and client.get_run(str(before)) is not None
    except mlflow.MlflowException:
        known = False
    # A flat run of its own: the run that `mlflow run` made covers several trainings.
    outer = os.environ.pop("MLFLOW_RUN_ID", None)
    try:
        with mlflow.start_run(run_id=before if known else None, run_name=None if known else name, nested=False) as run:
            if not known:
                mlflow.set_tags(dict(tags))
                mlflow.log_params(dict(params))
            yield str(run.info.run_id)
    finally:
        if outer is not None:
            os.environ["MLFLOW_RUN_ID"] = outer


def log_step(metrics: Mapping[str, float], step: int) -> None:
    mlflow.log_metrics(dict(metrics), step=step)
