"""Heads in the tracking store: fetches the two files of one from any address.

The MLflow model of a head has a flavour of its own, which names the folder of its files; no Python code belongs to it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import mlflow

from specexp import reading
from specexp.errors import ModelError
from specexp.tracking import backend

CONFIG, WEIGHTS = "config.json", "model.safetensors"
STORED = ("models:", "runs:")  # prefixes of addresses in the tracking store
MLMODEL = "MLmodel"  # the file that describes an MLflow model, in its folder
FLAVOR, FOLDER = "eagle3", "head"
MOST_BYTES = 1 << 34  # limit for each file of a head


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """Within the context, the local folder of the head at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or
    `runs:/ID/NAME`. Raises ModelError."""
    with tempfile.TemporaryDirectory(prefix="head-") as scratch:
        yield fetch(address, Path(scratch))


def fetch(address: str, scratch: Path) -> Path:
    """Download the head's two files, and nothing else that is stored at the address, below `scratch`."""
    try:
        with backend.quiet():
            return _fetch(address, scratch)
    except (mlflow.MlflowException, OSError, ValueError) as error:
        raise ModelError(_missing(address, error)) from error


def _fetch(address: str, scratch: Path) -> Path:
    listed, place = _listed(address), ""
    if CONFIG not in listed and MLMODEL in listed:
        path = mlflow.artifacts.download_artifacts(artifact_uri=f"{address}/{MLMODEL}", dst_path=str(scratch))
        place = f"/{place_in(Path(path), address)}"
        listed = _listed(f"{address}{place}")
    folder = scratch / FOLDER
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        if name not in listed:
            raise ModelError(
                f"'{address}' holds no head: it needs {CONFIG} and {WEIGHTS}, as train_drafter writes them."
            )
        if listed[name] > MOST_BYTES:
            raise ModelError(f"'{address}' holds no head: its {name} has more than {MOST_BYTES:,} bytes.")
        path = mlflow.artifacts.download_artifacts(artifact_uri=f"{address}{place}/{name}", dst_path=str(scratch))
        shutil.move(path, folder / name)
    return folder


def _listed(address: str) -> dict[str, int]:
    """The names of the files at an address, and their sizes in bytes."""
    files = mlflow.artifacts.list_artifacts(artifact_uri=address)
    return {PurePosixPath(file.path).name: file.file_size or 0 for file in files}


def _missing(address: str, error: Exception) -> str:
    where, words = backend.address(), backend.words(error)
    if where.startswith("http") and backend.is_unavailable(error):
        return (
            f"head '{address}' is in the store at {where}, which does not answer: {words}. Start it, name another one"
            " in MLFLOW_TRACKING_URI, or give the head's folder."
        )
    return f"head '{address}' is not in the store at {where}: {words}. Train one: train_drafter."


def place_in(path: Path, address: str) -> str:
    """Where the head's files are inside the MLflow model whose MLmodel is `path`. Raises ModelError."""
    where = f"head '{address}': {MLMODEL}"
    text = reading.decode(reading.read_bytes(path, "model file", ModelError), where, ModelError)
    result = reading.parse_yaml(text, where, ModelError)
    for key in ("flavors", FLAVOR, "path"):
        result = result.get(key) if isinstance(result, dict) else None
    if not isinstance(result, str) or PurePosixPath(result).is_absolute() or ".." in PurePosixPath(result).parts:
        raise ModelError(f"the MLflow model in '{address}' is not a head; make one with train_drafter.")
    return result
