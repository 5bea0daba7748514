"""What the MLflow runs of one output folder are to hold, written down before it is sent; nothing here knows MLflow."""

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
_SHEET = {
    "key": str, "name": str, "tags": _TEXTS, "params": _TEXTS, "metrics": {str: _METRIC}, "files": [_FILE],
    "inputs": [_INPUT], "time": int,
}  # fmt: skip
_MARK = {"where": _TEXTS, "params": _TEXTS, "tags": _TEXTS, "metrics": {str: _METRIC}, "time": int}
# A plan as JSON has it.
SHAPE = {
    "main": _SHEET, "flat": [_SHEET], "marks": [_MARK],
    "experiment": {"MLFLOW_EXPERIMENT_ID?": str, "MLFLOW_EXPERIMENT_NAME?": str},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file of the output folder, by its path there, and the artifact folder it goes to.

    With `only`, the lines of a JSONL file that hold these values.
    """

    path: str
    to: str = ""
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Input:
    """A dataset as MLflow has it: a source with {run_id} is in the run itself; `context` says what it is to the run."""

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
class RunSpec:
    """All that one run is to hold. Sent twice, it leaves the same run: `time` (ms) is when its metrics were taken."""

    key: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Sequence[File]
    inputs: Sequence[Input]
    time: int


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """Tags and metrics for the finished runs that carry `where` and have the parameters `params`."""

    where: Mapping[str, str]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    time: int


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """The flat runs of a folder, and the main run, which is sent last: it is finished when all is there.

    `experiment` is what the environment said of MLflow's experiment.
    """

    main: RunSpec
    flat: Sequence[RunSpec] = ()
    marks: Sequence[RunUpdate] = ()
    experiment: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> UploadPlan:
        """From `as_dict`, through JSON. Raises KeyError or TypeError."""
        flat = [_sheet(each) for each in found["flat"]]
        return cls(_sheet(found["main"]), flat, [RunUpdate(**each) for each in found["marks"]], found["experiment"])


def _sheet(found: Mapping[str, Any]) -> RunSpec:
    files, inputs = [File(**each) for each in found["files"]], [Input(**each) for each in found["inputs"]]
    return RunSpec(**{**found, "files": files, "inputs": inputs})


def now() -> int:
    """Milliseconds since the epoch, as MLflow dates metrics."""
    return int(time.time() * 1000)


def logged(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters as text; those that are nothing are not logged."""
    return {key: str(value) for key, value in params.items() if value not in (None, "")}
