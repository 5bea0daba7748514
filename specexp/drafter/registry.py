"""Drafters in MLflow: logs a head's two files as a model, registers it, and fetches it from any address.

The model has a flavour of its own, `eagle3`, and no Python code: nothing is pickled, and nothing runs on loading.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from specexp import reading
from specexp.drafter.head_folder import CONFIG, WEIGHTS, read_facts
from specexp.errors import ModelError
from specexp.tracking import stored_heads
from specexp.tracking.stored_heads import FLAVOR, FOLDER, MLMODEL, STORED, place_in

NAME = "drafter"
CHAMPION, CHALLENGER = "champion", "challenger"
_ABOUT = """EAGLE-3 heads (arXiv 2503.01840): each drafts for one target, from its hidden states.

Decode with one: `mlflow run . -e evaluate -P draft=models:/{name}@champion`. A head only works with the target that its
version's tags name."""


@dataclass(frozen=True, slots=True)
class DrafterPromotion:
    """The alias of a newly registered drafter, and the reason for it."""

    version: str
    alias: str
    reason: str


class HeadFlavor:
    """Writes an MLflow model of a head's folder; in the place of a flavour's module in `Model.log`."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, head: Path) -> None:
        """Copy the head's two files below `path`, and describe them in MLmodel."""
        folder = Path(path) / FOLDER
        folder.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(head / name, folder / name)
        mlflow_model.add_flavor(FLAVOR, path=FOLDER)
        mlflow_model.save(str(Path(path) / MLMODEL))


def log(folder: Path, name: str, metrics: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """Log the head in a folder as a model of the active run, with its metrics; return its address."""
    info = Model.log(
        artifact_path=None, flavor=HeadFlavor, name=name, head=folder,
        metadata={key: value for key, value in facts.items() if value not in ("", None)},
    )  # fmt: skip
    mlflow.log_metrics(dict(metrics), model_id=info.model_id)
    return str(info.model_uri)


def register(uri: str, name: str, tags: Mapping[str, object]) -> str:
    """Register a new version of model `name` with these tags; describe the model if it has no description."""
    client, made = MlflowClient(), mlflow.register_model(uri, name)
    for key, value in tags.items():
        if value not in ("", None):
            client.set_model_version_tag(name, made.version, key, str(value))
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, _ABOUT.format(name=name))
    return str(made.version)


def champion(name: str, scratch: Path) -> tuple[str, Path | None] | None:
    """The registered champion's version and folder below `scratch` (None if its files are gone); None without one."""
    try:
        result = MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    try:
        return str(result.version), fetch(f"models:/{name}/{result.version}", scratch)
    except ModelError:
        return str(result.version), None


def promote(name: str, new: str, better: bool, reason: str) -> DrafterPromotion:
    """Set the alias of version `new`, and store the reason on that version."""
    alias = CHAMPION if better else CHALLENGER
    client = MlflowClient()
    client.set_registered_model_alias(name, alias, new)
    client.set_model_version_tag(name, new, "verdict", alias)
    client.update_model_version(name, new, description=f"{alias}: {reason}")
    return DrafterPromotion(new, alias, reason)


def fetch(address: str, scratch: Path | None = None) -> Path:
    """The local folder of a drafter: of `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/ID/NAME`, or a folder.

    Files from the store are downloaded below `scratch`, or a new temporary folder. Raises ModelError.
    """
    if address.startswith(STORED):
        result = stored_heads.fetch(address, Path(tempfile.mkdtemp(prefix="drafter-", dir=scratch)))
    else:
        folder = reading.folder_of(address, "drafter", ModelError, "models:/NAME@champion, or runs:/ID/drafter")
        result = folder / place_in(folder / MLMODEL, address) if _is_model(folder) else folder
    read_facts(result, address)
    return result


def _is_model(folder: Path) -> bool:
    return not (folder / CONFIG).is_file() and (folder / MLMODEL).is_file()
