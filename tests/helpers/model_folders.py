"""Tiny random models of several families, and functions that add noise to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_for(values: Iterable[Any], *slow: Any) -> list[Any]:
    """A test's parameters, of which those in `slow` run in the slow tier."""
    return [pytest.param(value, marks=pytest.mark.slow) if value in slow else value for value in values]


def nightly_for(values: Iterable[Any], *nightly: Any) -> list[Any]:
    """A test's parameters, of which those in `nightly` run in the nightly tier."""
    return [pytest.param(value, marks=pytest.mark.nightly) if value in nightly else value for value in values]


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
    # Eager attention with sinks, experts, and a window in every second layer.
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
# Models whose rotary angles depend on the length; tests/lm/test_rope.py tests them.
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
    """A random model of this family with a wide spread of logits, so that greedy choices are not near ties."""
    import copy

    import torch
    import transformers

    name, sizes = (FAMILIES | LENGTH_DEPENDENT)[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy({**COMMON, **sizes, **more}))
    return randomised(transformers.AutoModelForCausalLM.from_config(config).eval(), seed)


def randomised(module: Any, seed: int = 0) -> Any:
    """Add random values where transformers initialises all to one value, such as biases of 0 and norms of 1: otherwise
    code that omits them, or confuses two of them, would pass unnoticed."""
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
            # Where all weights are equal, their size replaces their spread.
            spread = parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else parameter.abs().mean()
            parameter += noise * spread * torch.randn(parameter.shape, generator=generator)
    return other
