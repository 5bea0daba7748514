"""Reads the weights of an EAGLE-3 head in the published layout, and checks them against its config.

Shapes: D hidden size of the head, E of the target, V vocabulary, W ids that the head scores.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from specexp.errors import ModelError, first_line
from specexp.lm.heads.eagle3_config import NUM_STATES, Eagle3Config

LAYER = ("midlayer.", "layers.0.")
REQUIRED = (
    "fc.weight", "layer.input_layernorm.weight", "layer.hidden_norm.weight", "layer.self_attn.q_proj.weight",
    "layer.self_attn.k_proj.weight", "layer.self_attn.v_proj.weight", "layer.self_attn.o_proj.weight",
    "layer.post_attention_layernorm.weight", "layer.mlp.gate_proj.weight", "layer.mlp.up_proj.weight",
    "layer.mlp.down_proj.weight", "norm.weight",
)  # fmt: skip
OPTIONAL = (
    "fc.bias", "layer.self_attn.q_proj.bias", "layer.self_attn.k_proj.bias", "layer.self_attn.v_proj.bias",
    "layer.self_attn.o_proj.bias", "layer.mlp.gate_proj.bias", "layer.mlp.up_proj.bias", "layer.mlp.down_proj.bias",
    "embed_tokens.weight", "lm_head.weight", "d2t", "t2d",
)  # fmt: skip


def head_dim(config: Eagle3Config) -> int:
    """Size of an attention head."""
    return int(config.values.get("head_dim") or config.size // config.values["num_attention_heads"])


def read_weights(config: Eagle3Config, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The weights by name, the decoder layer's as `layer.*`. Raises ModelError for a missing or unknown one."""
    result: dict[str, Tensor] = {}
    files = sorted(config.folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"head '{config.name}' has no weights (*.safetensors); get all its files.")
    try:
        for file in files:
            result.update(load_file(file))
    except Exception as error:
        raise ModelError(f"head '{config.name}' cannot be loaded: {first_line(error)}") from error
    weights = {_plain(name): value for name, value in result.items()}
    missing = [name for name in REQUIRED if name not in weights]
    unknown = [name for name in weights if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which is not known"
        raise ModelError(f"head '{config.name}' {what}; it must be an EAGLE-3 head in the published layout.")
    _check_shapes(config, weights)
    return {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in weights.items()
    }


def _plain(name: str) -> str:
    name = name.removeprefix("model.")
    for prefix in LAYER:
        if name.startswith(prefix):
            return f"layer.{name.removeprefix(prefix)}"
    return name


def _check_shapes(config: Eagle3Config, weights: dict[str, Tensor]) -> None:
    size, ids = config.size, config.num_draft_ids
    wanted = {
        "fc.weight": (size, NUM_STATES * config.target_size),
        "layer.self_attn.q_proj.weight": (config.values["num_attention_heads"] * head_dim(config), 2 * size),
        "norm.weight": (size,),
        "lm_head.weight": (ids, size),
        "embed_tokens.weight": (config.num_ids, size),
        "d2t": (ids,),
    }
    for name, shape in wanted.items():
        if name in weights and tuple(weights[name].shape) != shape:
            raise ModelError(
                f"head '{config.name}': {name} is {tuple(weights[name].shape)}, but its config.json says {shape}."
            )
    if "embed_tokens.weight" not in weights and size != config.target_size:
        raise ModelError(
            f"head '{config.name}' has hidden size {size} and no embedding of its own, but the target's has"
            f" {config.target_size} values."
        )
    if "lm_head.weight" not in weights and (size != config.target_size or ids != config.num_ids):
        raise ModelError(f"head '{config.name}' lacks lm_head.weight; get all its files.")
    if "d2t" not in weights and ids != config.num_ids:
        raise ModelError(f"head '{config.name}' scores {ids} ids and has no d2t, which says what they are.")
    if "d2t" in weights:
        target_ids = torch.arange(ids) + weights["d2t"]
        if len(set(target_ids.tolist())) < ids or not (target_ids.min() >= 0 and target_ids.max() < config.num_ids):
            raise ModelError(
                f"head '{config.name}': d2t must give {ids} different ids below {config.num_ids} (offsets)."
            )
