"""Drafters in MLflow: logs a head's two files as a model, registers it, and fetches it from any address.

The model has a flavour of its own, `eagle3`, and no Python code: nothing is pickled, and nothing runs on loading.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model

from specexp import reading
from specexp.drafter.head_folder import CONFIG, WEIGHTS, read_facts
from specexp.errors import ModelError
from specexp.tracking import registered, stored_heads
from specexp.tracking.stored_heads import FLAVOR, FOLDER, MLMODEL, STORED, place_in

NAME = "drafter"
_ABOUT = """EAGLE-3 heads (arXiv 2503.01840): each drafts for one target, from its hidden states.

Decode with one: `mlflow run . -e evaluate -P draft=models:/{name}@champion`. A head only works with the target that its
version's tags name."""


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
    """Register a new version of model `name` with these tags."""
    return registered.register(uri, name, tags, _ABOUT.format(name=name))


def champion(name: str, scratch: Path) -> tuple[str, Path | None] | None:
    """The registered champion's version and folder below `scratch` (None if its files are gone); None without one."""
    version = registered.champion_version(name)
    if version is None:
        return None
    try:
        return version, fetch(f"models:/{name}/{version}", scratch)
    except ModelError:
        return version, None


def fetch(address: str, scratch: Path) -> Path:
    """The local folder of a drafter: of `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/ID/NAME`, or a folder.

    Files from the store are downloaded to `scratch`. Raises ModelError.
    """
    if address.startswith(STORED):
        result = stored_heads.fetch(address, scratch)
    else:
        folder = reading.folder_of(address, "drafter", ModelError, "models:/NAME@champion, or runs:/ID/drafter")
        result = folder / place_in(folder / MLMODEL, address) if _is_model(folder) else folder
    read_facts(result, address)
    return result


def _is_model(folder: Path) -> bool:
    return not (folder / CONFIG).is_file() and (folder / MLMODEL).is_file()
