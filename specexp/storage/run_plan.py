"""The contents of one output folder's MLflow runs, saved before they are sent; this module does not import MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specexp.tasks.example import Dataset

_TEXTS = {str: str}
_METRIC = (float, bool)
_FILE = {"path": str, "to": str, "only": {str: object}}
_INPUT = {"name": str, "digest": str, "source": str, "source_type": str, "num_rows": int, "context": str}
_POINT = {"name": str, "value": float, "step": int}
_RUN_SPEC = {
    "key": str, "name": str, "tags": _TEXTS, "params": _TEXTS, "metrics": {str: _METRIC}, "files": [_FILE],
    "inputs": [_INPUT], "time": int, "series?": [_POINT],
}  # fmt: skip
_RUN_UPDATE = {"where": _TEXTS, "params": _TEXTS, "tags": _TEXTS, "metrics": {str: _METRIC}, "time": int}
# The shape of a plan in JSON.
SHAPE = {
    "main": _RUN_SPEC, "flat": [_RUN_SPEC], "marks": [_RUN_UPDATE],
    "experiment": {"MLFLOW_EXPERIMENT_ID?": str, "MLFLOW_EXPERIMENT_NAME?": str},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file of the output folder, by its path there, and the artifact folder it is logged to.

    With `only`, just the lines of a JSONL file that have these values.
    """

    path: str
    to: str = ""
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Input:
    """A dataset input of an MLflow run: a source with {run_id} is in the run itself; `context` is MLflow's context."""

    name: str
    digest: str  # SHA-256
    source: str
    source_type: str
    num_rows: int
    context: str

    @classmethod
    def of(cls, dataset: Dataset, context: str) -> Input:
        kind = "local" if Path(dataset.source).exists() else "external"
        return cls(dataset.name, dataset.digest, dataset.source, kind, dataset.num_rows, context)


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a metric that has several, at its step."""

    name: str
    value: float
    step: int


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All contents of one run. Sending it twice gives the same run: `time` (ms) is when its metrics were measured."""

    key: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Sequence[File]
    inputs: Sequence[Input]
    time: int
    series: Sequence[MetricPoint] = ()


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """Tags and metrics to add to the finished runs with the tags `where` and the parameters `params`."""

    where: Mapping[str, str]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    time: int


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """The method runs of a folder, and the main run, which is sent last: it becomes FINISHED when everything is sent.

    `experiment` holds MLflow's experiment variables from the environment.
    """

    main: RunSpec
    method_runs: Sequence[RunSpec] = ()
    updates: Sequence[RunUpdate] = ()
    experiment: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        fields = asdict(self)  # the file keeps the keys that earlier versions read
        return {
            "main": fields["main"],
            "flat": fields["method_runs"],
            "marks": fields["updates"],
            "experiment": fields["experiment"],
        }

    @classmethod
    def parse(cls, plan: Mapping[str, Any]) -> UploadPlan:
        """Build a plan from the JSON of `as_dict`. Raises KeyError or TypeError."""
        method_runs = [_run_spec(each) for each in plan["flat"]]
        return cls(
            _run_spec(plan["main"]), method_runs, [RunUpdate(**each) for each in plan["marks"]], plan["experiment"]
        )


def _run_spec(spec: Mapping[str, Any]) -> RunSpec:
    files, inputs = [File(**each) for each in spec["files"]], [Input(**each) for each in spec["inputs"]]
    series = [MetricPoint(**each) for each in spec.get("series", ())]  # plans of earlier versions have none
    return RunSpec(**{**spec, "files": files, "inputs": inputs, "series": series})


def now() -> int:
    """Milliseconds since the epoch, the unit of MLflow's metric timestamps."""
    return int(time.time() * 1000)


def logged(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters as text, without those that are None or empty."""
    return {key: str(value) for key, value in params.items() if value not in (None, "")}
