"""Shared fixtures: tiny random model folders of several families, made once a session."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from specexp.lm.hf.hf_model import HFModel


def pytest_configure() -> None:
    """Some tests send Ctrl-C, which is ignored in what a shell script runs in its background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def slow_for(values: Iterable[str], *slow: str) -> list[Any]:
    """A test's parameters, of which those in `slow` run in the slow tier."""
    return [pytest.param(value, marks=pytest.mark.slow) if value in slow else value for value in values]


VOCAB = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.25,
}
LLAMA_LIKE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 160,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA_LIKE),
    "qwen2": ("Qwen2", LLAMA_LIKE),
    "mistral": ("Mistral", {**LLAMA_LIKE, "sliding_window": None}),
    "mistral_window": ("Mistral", {**LLAMA_LIKE, "sliding_window": 12}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160}),
    "gpt_neox": ("GPTNeoX", {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}),
    "phi": ("Phi", LLAMA_LIKE),
    # Eager attention with sinks, experts, and every second layer with a window.
    "gpt_oss": (
        "GptOss",
        {
            **LLAMA_LIKE,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 12,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}


# Models whose rotary angles depend on the length, which tests/test_rope.py is about.
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [3.0, 5.0, 8.0, 12.0], "original_max_position_embeddings": 64,
}  # fmt: skip
LENGTH_DEPENDENT: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": (
        "Phi3",
        {
            **LLAMA_LIKE, "max_position_embeddings": 640, "original_max_position_embeddings": 64,
            "rope_parameters": LONGROPE,
        },
    ),
    "phimoe": (
        "Phimoe",
        {
            **LLAMA_LIKE, "max_position_embeddings": 640, "num_local_experts": 4,
            "rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.4, "factor": 10.0},
        },
    ),
}  # fmt: skip


def build(family: str, seed: int = 0, **more: Any) -> Any:
    """A random model of this family with a wide spread of logits, so that greedy choices are no near ties."""
    import copy

    import torch
    import transformers

    name, sizes = (FAMILIES | LENGTH_DEPENDENT)[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy({**COMMON, **sizes, **more}))
    return randomised(transformers.AutoModelForCausalLM.from_config(config).eval(), seed)


def randomised(module: Any, seed: int = 0) -> Any:
    """With random values where transformers begins with one for all, which are biases of 0 and norms of 1: what leaves
    them out, or takes one for another, would else go unnoticed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def disturbed(module: Any, noise: float, seed: int = 1) -> Any:
    """The same model with noise on its weights, biases and norms: a draft that agrees often, not always."""
    import copy

    import torch

    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            # Of weights that are all alike, how large they are.
            spread = parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else parameter.abs().mean()
            parameter += noise * spread * torch.randn(parameter.shape, generator=generator)
    return other


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
