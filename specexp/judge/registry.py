"""Judges in MLflow: logs them as models with all they need, registers them, and loads them from any address.

A judge is an MLflow model from code (pyfunc.py) with safetensors weights; nothing is pickled. Decoding does not use
MLflow's wrapper: `load` returns the judge itself.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import mlflow
import numpy as np
from mlflow.entities import Dataset
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from specexp import reading
from specexp.errors import JudgeError
from specexp.judge.judge import FACTS, WEIGHTS, Facts, Judge
from specexp.tracking import backend, registered

NAME = "autojudge"
STORED = ("models:", "runs:")  # prefixes of addresses in the tracking store
MLMODEL = "MLmodel"  # the file that describes an MLflow model, in its folder
MOST_BYTES = 1 << 30  # limit for each file of a judge; for comparison, two hidden states of 16,384 make 64 MB
HERE = Path(__file__).resolve().parent
REQUIREMENTS = ("mlflow", "numpy", "safetensors", "array-api-compat")
_ABOUT = """Judges of AutoJudge (arXiv 2504.20039): each predicts whether a drafted token that the target would not have
chosen would change the answer.

Decode with one: `mlflow run . -e evaluate -P judge=models:/{name}@champion`. A judge only works with the pair,
tokenizer and features that its version's tags name."""


def log(
    judge: Judge, name: str, metrics: Mapping[str, float], example: np.ndarray, labels: tuple[str, str] | None = None
) -> str:
    """Log a judge as a model of the active run, with its metrics on `labels` (name, digest); return its address."""
    num = judge.network.num_features
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, num))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1,))]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "judge"
        judge.save(folder)
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(HERE / "pyfunc.py"),
            code_paths=[str(HERE / "network.py")],
            artifacts={"judge": str(folder)},
            signature=signature,
            input_example=example[:2].astype(np.float32),
            pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
            metadata={key: value for key, value in asdict(judge.facts).items() if value not in ("", None)},
        )
    data = None if labels is None else Dataset(*labels, "", "")
    mlflow.log_metrics(dict(metrics), model_id=info.model_id, dataset=data)
    return str(info.model_uri)


def register(uri: str, name: str, facts: Facts) -> str:
    """Register a new version of model `name`, tagged with what it fits."""
    tags = {
        "target": facts.target_name, "draft": facts.draft_name, "task": facts.task, "kind": facts.kind,
        "features": facts.features, "threshold": f"{facts.threshold:.4g}", "recall": f"{facts.recall:.4g}",
        "answer_version": facts.answer_version,
    }  # fmt: skip
    return registered.register(uri, name, tags, _ABOUT.format(name=name))


def champion(name: str) -> tuple[str, Judge | None] | None:
    """Return the registered champion's version and judge (None if its files are gone), or None without a champion."""
    version = registered.champion_version(name)
    if version is None:
        return None
    try:
        return version, load(f"models:/{name}/{version}")
    except JudgeError:
        return version, None


def load(address: str) -> Judge:
    """Load a judge by `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/ID/NAME`, or a folder. Raises JudgeError."""
    if not address.startswith(STORED):
        folder = reading.folder_of(address, "judge", JudgeError, "models:/NAME@champion, or runs:/ID/judge")
        return Judge.load(folder / _place(folder / MLMODEL, address) if _is_model(folder) else folder, address)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with backend.quiet():
                result = _fetch(address, Path(scratch))
        except (mlflow.MlflowException, OSError, ValueError) as error:
            raise JudgeError(_missing(address, error)) from error
        return Judge.load(result, address)


def _fetch(address: str, scratch: Path) -> Path:
    """Download the judge's two files, and nothing else that is stored at the address."""
    listed = {PurePosixPath(file.path).name: file for file in mlflow.artifacts.list_artifacts(artifact_uri=address)}
    place = ""
    if FACTS not in listed and MLMODEL in listed:
        path = mlflow.artifacts.download_artifacts(artifact_uri=f"{address}/{MLMODEL}", dst_path=str(scratch))
        place = f"/{_place(Path(path), address)}"
        inside = mlflow.artifacts.list_artifacts(artifact_uri=f"{address}{place}")
        listed = {PurePosixPath(file.path).name: file for file in inside}
    folder = scratch / "files of the judge"
    folder.mkdir()
    for name in (FACTS, WEIGHTS):
        if name not in listed:
            raise JudgeError(f"'{address}' holds no judge: it needs {FACTS} and {WEIGHTS}, as train_judge writes them.")
        if (listed[name].file_size or 0) > MOST_BYTES:
            raise JudgeError(f"'{address}' holds no judge: its {name} has more than {MOST_BYTES:,} bytes.")
        path = mlflow.artifacts.download_artifacts(artifact_uri=f"{address}{place}/{name}", dst_path=str(scratch))
        shutil.copyfile(path, folder / name)
    return folder


def _missing(address: str, error: Exception) -> str:
    where, words = backend.address(), backend.words(error)
    if where.startswith("http") and backend.is_unavailable(error):
        return (
            f"judge '{address}' is in the store at {where}, which does not answer: {words}. Start it, name another one"
            " in MLFLOW_TRACKING_URI, or give the judge's folder."
        )
    return f"judge '{address}' is not in the store at {where}: {words}. Train one: collect_labels, then train_judge."


def _is_model(folder: Path) -> bool:
    return not (folder / FACTS).is_file() and (folder / MLMODEL).is_file()


def _place(path: Path, address: str) -> str:
    """Return where the judge's files are inside the MLflow model whose MLmodel is `path`. Raises JudgeError."""
    where = f"judge '{address}': {MLMODEL}"
    text = reading.decode(reading.read_bytes(path, "judge file", JudgeError), where, JudgeError)
    result = reading.parse_yaml(text, where, JudgeError)
    for key in ("flavors", "python_function", "artifacts", "judge", "path"):
        result = result.get(key) if isinstance(result, dict) else None
    if not isinstance(result, str) or PurePosixPath(result).is_absolute() or ".." in PurePosixPath(result).parts:
        raise JudgeError(f"the MLflow model in '{address}' is not a judge; make one with train_judge.")
    return result
