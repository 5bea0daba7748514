"""Sizes of well-known models: what a speed measurement with random weights needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA_3: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
_QWEN_3: Mapping[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
_TINY: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_LLAMA_3_8B: Mapping[str, Any] = {
    **_LLAMA_3,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
}
# Llama 3.1 8B and Llama 3.2 1B; Qwen3 8B and 0.6B; Llama 3.1 70B and 8B; and a shape that a CPU can run in a test.
SHAPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "llama-8b-1b": {
        "target": _LLAMA_3_8B,
        "draft": {
            **_LLAMA_3,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
    },
    "qwen3-8b-0.6b": {
        "target": {
            **_QWEN_3,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        },
        "draft": {
            **_QWEN_3,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "tie_word_embeddings": True,
        },
    },
    "llama-70b-8b": {
        "target": {
            **_LLAMA_3,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
        },
        "draft": _LLAMA_3_8B,
    },
    "tiny": {
        # Of three layers or more, all come in each call: two have a buffer each.
        "target": {**_TINY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
        "draft": {**_TINY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    },
}
ONLY_OFFLOADED = frozenset({"llama-70b-8b"})  # its target fits no single device
