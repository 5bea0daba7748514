"""A tiny random model of any causal family of transformers, from its config alone: two layers, 96 tokens.

Sizes are set by the names that configs use for them. Every parameter gets noise, since transformers initialises biases
to 0 and norms to 1, and a forward that drops them would not be noticed.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from specexp.lm.hf.model_config import CONDITIONAL, model_class

VOCAB, CONTEXT, WINDOW = 96, 160, 8
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_words", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "emb_dim"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size",
         "hidden_dim", "dim_feedforward"), 48,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
         "num_encoder_layers", "num_decoder_layers"), 2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "num_encoder_attention_heads", "num_decoder_attention_heads"), 4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), CONTEXT
    ),
    **dict.fromkeys(("sliding_window", "attention_window"), WINDOW),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(
        ("head_dim", "global_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
         "hidden_size_per_layer_input", "laurel_rank"), 8,
    ),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_experts_shared"), 1),
    **dict.fromkeys(("initializer_range", "init_std", "embed_init_std"), 0.25),
    "is_decoder": True, "is_encoder_decoder": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "rotary_dim": 4, "dropout": 0.0,
}  # fmt: skip
LATENT = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note", "dots3_note_text", "glm4_moe_lite",
    "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu",
)  # fmt: skip
FULL, HALVES = ["full_attention"] * 2, ["sliding_attention", "full_attention"] * 2
SHARED: dict[str, Any] = {"num_kv_shared_layers": 2, "num_hidden_layers": 4, "layer_types": HALVES}
LLAMA_4: dict[str, Any] = {
    "floor_scale": 4, "layer_types": FULL, "no_rope_layers": [1, 0], "attn_temperature_tuning": True
}  # fmt: skip
LEARNED_BUFFERS = ("layer_scalar", "e_score_correction_bias")  # values that come with the weights
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    "n_mamba_heads": 2, "mamba_dt_rank": 4, "mamba_headdim": 32, "mamba_ngroups": 1, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "ssm_state_size": 8, "chunk_size": 8, "use_mamba_kernels": False, "attention_head_dim": 16,
}  # fmt: skip
VISION: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "depth"), 1),
    "intermediate_size": 48, "image_size": 28, "patch_size": 14, "head_dim": 8, "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
}  # fmt: skip
MROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
}  # positions of text alone are the same in all sections
LARGE = ("blt", "git", "phi4_multimodal")  # parts that these sizes do not reach take gigabytes, or minutes
# Settings that a family needs in addition, or instead.
MORE: dict[str, dict[str, Any]] = {
    **{kind: {"num_key_value_heads": 4} for kind in LATENT},
    **{kind: SHARED | {"activation_sparsity_pattern": None} for kind in ("gemma3n", "gemma3n_text")},
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), SHARED),
    **dict.fromkeys(("llama4", "llama4_text"), LLAMA_4),
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "cohere_compass_text": {"layer_types": FULL},
    "dots1": {"layer_types": None, "n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_vl": {"layer_types": ["conv", "full_attention"]},
    **dict.fromkeys(("glm4v", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"), MROPE),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    **dict.fromkeys(
        ("olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), LINEAR
    ),
    **dict.fromkeys(
        ("qwen4_exp", "qwen4_exp_text"),
        LINEAR
        | {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        },
    ),
    **dict.fromkeys(
        ("bailing_hybrid", "kimi_linear"),
        LINEAR
        | {
            "num_key_value_heads": 4,
            "mlp_layer_types": ["dense", "sparse"],
            "num_experts_per_token": 2,
            "num_expert_group": 1,
            "topk_group": 1,
        },
    ),
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"], "shared_intermediate_size": 48},
    "jamba": MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "nemotron_h": MAMBA
    | {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 32,
    },
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": WINDOW},
    "xlstm": {"num_blocks": 2, "qk_dim_factor": 1.0},
    "zamba": MAMBA
    | {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_key_value_heads": 4, "num_hidden_layers": 3},
    "zamba2": MAMBA
    | {
        "layers_block_type": ["linear_attention", "hybrid"],
        "hybrid_layer_ids": [1],
        "num_key_value_heads": 4,
        "num_query_groups": 4,
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 20]},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def config(kind: str, **more: Any) -> Any:
    """A tiny config of this model type; for a model of several parts, that of the text part, if it is a model too."""
    text = _text_config(kind, **more)
    return _with_text(kind, text) if kind in CONDITIONAL else text


def _with_text(kind: str, text: Any) -> Any:
    """A whole config with this text part; the other part is as small as its fields allow."""
    vision = CONFIG_MAPPING[kind]().vision_config
    renamed = getattr(type(vision), "attribute_map", {})
    sizes = {name: value for name, value in VISION.items() if hasattr(vision, name) and name not in renamed}
    return CONFIG_MAPPING[kind](text_config=text.to_dict(), vision_config={**vision.to_dict(), **sizes})


def _text_config(kind: str, **more: Any) -> Any:
    family = type(CONFIG_MAPPING[kind]().get_text_config(decoder=True))
    names = set(inspect.signature(family.__init__).parameters) | set(vars(family())) | set(family.__annotations__)
    renamed = getattr(family, "attribute_map", {})
    sizes = {name: value for name, value in SIZES.items() if name in names and name not in renamed}
    return family(**{**sizes, **MORE.get(kind, {}), **more})


def conditional(kind: str, text: Any, seed: int = 0) -> Any:
    """A random model of images and text whose text part has this config."""
    torch.manual_seed(seed)
    whole = _with_text(kind, text)
    return model_class(whole)(whole).eval()


def build(kind: str, seed: int = 0, **more: Any) -> Any:
    """A random model with a wide spread of logits, in float32."""
    if kind in LARGE:
        raise ValueError(f"no tiny {kind} can be built from its config")
    built = config(kind, **more)
    torch.manual_seed(seed)
    module = model_class(built)(built).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() < 2 or parameter.std() < 0.1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in module.named_buffers():
            if name.endswith(LEARNED_BUFFERS):
                buffer += 0.2 * torch.randn(buffer.shape, generator=generator)
    return module


def disturbed(module: Any, noise: float = 0.05, seed: int = 2) -> Any:
    """A draft that agrees often, not always."""
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            spread = parameter.std() if parameter.numel() > 1 else 0.0  # one value has none
            parameter += noise * spread * torch.randn(parameter.shape, generator=generator)
    return other
