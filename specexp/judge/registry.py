"""Judges in MLflow: logged as models with everything they need, registered, and loaded again by any address.

A judge is an MLflow model from code (served.py) with safetensors weights; nothing is pickled. Decoding does not go
through MLflow's wrapper: `load` gives the judge itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Dataset
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from specexp import store
from specexp.errors import JudgeError
from specexp.judge.judge import FACTS, Facts, Judge

NAME = "autojudge"
CHAMPION, CHALLENGER = "champion", "challenger"
HERE = Path(__file__).resolve().parent
REQUIREMENTS = ("mlflow", "numpy", "safetensors", "array-api-compat")
_ABOUT = """Judges of AutoJudge (arXiv 2504.20039): each says of a drafted token that the target would not have chosen
whether that mismatch would change the answer.

Decode with one: `mlflow run . -e evaluate -P judge=models:/{name}@champion`. A judge fits the pair, the tokenizer and
the features that its version's tags name, and is refused by any other."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a newly registered judge."""

    version: str
    alias: str
    reason: str


def log(
    judge: Judge, name: str, metrics: Mapping[str, float], example: np.ndarray, labels: tuple[str, str] | None = None
) -> str:
    """Log a judge as a model of the active run, with its metrics on `labels` (name, digest); returns its address."""
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
            python_model=str(HERE / "served.py"),
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
    """A new version of the registered model `name`, tagged with what it fits; its page says what it is for."""
    client, made = MlflowClient(), mlflow.register_model(uri, name)
    for key, value in (
        ("target", facts.target_name), ("draft", facts.draft_name), ("task", facts.task), ("kind", facts.kind),
        ("features", facts.features), ("threshold", f"{facts.threshold:.4g}"), ("recall", f"{facts.recall:.4g}"),
        ("answer_version", facts.answer_version),
    ):  # fmt: skip
        if value:
            client.set_model_version_tag(name, made.version, key, value)
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, _ABOUT.format(name=name))
    return str(made.version)


def champion(name: str) -> tuple[str, Judge | None] | None:
    """The registered champion's version and the judge itself (None if its files are gone), if there is one."""
    try:
        found = MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    try:
        return str(found.version), load(f"models:/{name}/{found.version}")
    except JudgeError:
        return str(found.version), None


def crown(name: str, new: str, better: bool, reason: str) -> Verdict:
    """Give version `new` the alias that it earned, and say why on the version itself."""
    alias = CHAMPION if better else CHALLENGER
    client = MlflowClient()
    client.set_registered_model_alias(name, alias, new)
    client.set_model_version_tag(name, new, "verdict", alias)
    client.update_model_version(name, new, description=f"{alias}: {reason}")
    return Verdict(new, alias, reason)


def load(address: str) -> Judge:
    """A judge by `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/ID/NAME`, or a folder. Raises JudgeError."""
    folder = Path(address).expanduser()
    if "://" not in address and not address.startswith(("models:", "runs:")):
        if not folder.is_dir():
            raise JudgeError(
                f"judge '{address}' does not exist; give a folder, models:/NAME@champion, or runs:/ID/judge."
            )
        return Judge.load(_inside(folder))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with store.quiet():
                found = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch)
        except (mlflow.MlflowException, OSError, ValueError) as error:
            raise JudgeError(_missing(address, error)) from error
        return Judge.load(_inside(Path(found)))


def _missing(address: str, error: Exception) -> str:
    where, words = store.address(), store.words(error)
    if where.startswith("http") and store.is_silence(error):
        return (
            f"judge '{address}' is in the store at {where}, which does not answer: {words}. Start it, name another one"
            " in MLFLOW_TRACKING_URI, or give the judge's folder."
        )
    return f"judge '{address}' is not in the store at {where}: {words}. Train one: collect_labels, then train_judge."


def _inside(folder: Path) -> Path:
    """Where the judge's own files are: here, or inside an MLflow model."""
    if (folder / FACTS).is_file() or not (folder / "MLmodel").is_file():
        return folder
    flavor: Mapping[str, Any] = Model.load(str(folder)).flavors.get("python_function", {})
    path = flavor.get("artifacts", {}).get("judge", {}).get("path")
    if path is None:
        raise JudgeError(f"the MLflow model in '{folder}' is no judge; train_judge makes them.")
    return folder / str(path)
