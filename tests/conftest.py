"""Shared fixtures: tiny random model folders of several families, made once a session."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("helpers")  # before they are imported

from mlflow.tracking import MlflowClient

from helpers import tiers
from helpers.model_folders import build, disturbed
from specexp.lm.hf.hf_model import HFModel


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers.assign(items)


def pytest_configure() -> None:
    """Some tests send Ctrl-C, which is ignored in what a shell script runs in its background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`folder("llama")` is a saved model folder; `folder("llama", noise=.1)` its disturbed draft."""
    made: dict[tuple[str, float], Path] = {}

    def make(family: str, noise: float = 0.0) -> Path:
        if (family, noise) not in made:
            path = tmp_path_factory.mktemp(f"{family}-{noise}")
            module = build(family)
            (disturbed(module, noise) if noise else module).save_pretrained(path)
            made[family, noise] = path
        return made[family, noise]

    return make


@pytest.fixture(scope="session")
def pair(folder: Callable[..., Path]) -> Callable[[str], dict[str, HFModel]]:
    """`pair("llama")`: target and draft, loaded from their folders in fp32."""
    from specexp.lm.hf.loading import load_model
    from specexp.lm.runtime import ModelConfig

    loaded: dict[str, dict[str, HFModel]] = {}

    def load(family: str) -> dict[str, HFModel]:
        if family not in loaded:
            folders = {"target": folder(family), "draft": folder(family, noise=0.06)}
            loaded[family] = {role: load_model(ModelConfig(str(path))) for role, path in folders.items()}
        return loaded[family]

    return load


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables made: making them takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with contextlib.chdir(path.parent):  # where the store will have its artifacts put
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workplace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a fresh MLflow store of its own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return tmp_path


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are read."""

    def load_model(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a model was loaded")

    from specexp.lm.hf import loading

    monkeypatch.setattr(loading, "load_model", load_model)
