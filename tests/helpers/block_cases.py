"""Tiny models for every part that a block may have: families of the native forward, and variants of their configs."""

from __future__ import annotations

from typing import Any

from specexp.lm.blocks.families import FAMILIES
from specexp.lm.hf.model_config import CONDITIONAL

MIXED = ["sliding_attention", "full_attention"]
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
GEMMA_4 = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
# Name: model type and what its config has besides `tiny_models`' sizes.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere, norms per head": ("cohere", {"use_qk_norm": True, "logit_scale": 2.0}),
    "cohere 2, mixed layers": ("cohere2", {"layer_types": MIXED}),
    "exaone 4, mixed layers": ("exaone4", {"layer_types": MIXED, "sliding_window_pattern": 2}),
    "exaone 4, no windows": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "exaone moe, mixed layers": ("exaone_moe", {"layer_types": MIXED, "sliding_window_pattern": 2}),
    "gemma 2, low caps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma 3, mixed layers": ("gemma3_text", {"layer_types": MIXED}),
    "gemma 4, dense": ("gemma4_text", GEMMA_4),
    "gemma 4, experts": (
        "gemma4_text",
        GEMMA_4 | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "gemma 4, values are keys": ("gemma4_text", {"attention_k_eq_v": True}),
    "gemma 4, wide MLPs": ("gemma4_text", {"use_double_wide_mlp": True}),
    "gpt-neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt-oss, yarn": ("gpt_oss", {"rope_parameters": YARN}),
    "granite, multipliers": (
        "granite",
        {"residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.2},
    ),
    "ministral 3, scaled queries": (
        "ministral3",
        {"rope_parameters": {**YARN, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.3}},
    ),
    "olmo 3, mixed layers": ("olmo3", {"layer_types": MIXED}),
    "phi, norms per head": ("phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
    "qwen 3 moe, a dense layer": ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": True}),
    "seed-oss, biases": ("seed_oss", {"attention_bias": True, "attention_out_bias": True}),
    "smollm 3, no positions": ("smollm3", {"no_rope_layers": [1, 0]}),
    "stablelm, norms per head": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
}
# The model type to build for each family: some text parts are built with the whole model only.
BUILT = {family: whole if (whole := family.removesuffix("_text")) in CONDITIONAL else family for family in FAMILIES}
CASES: dict[str, tuple[str, dict[str, Any]]] = {**{kind: (kind, {}) for kind in BUILT.values()}, **VARIANTS}
