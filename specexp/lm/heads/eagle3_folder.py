"""Reads a folder or hub id of an EAGLE-3 head in the published layout (`LlamaForCausalLMEagle3`).

Its config.json is checked against the target's config before any weights are read. The layout: `fc` joins the hidden
states of three of the target's layers, `midlayer` (or `layers.0`) is one decoder layer whose projections take two
vectors, `norm` and `lm_head` score `draft_vocab_size` ids, and `d2t` says which of the target's ids they are.

Shapes: D hidden size of the head, E of the target, V vocabulary, W ids that the head scores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig

from specexp.errors import ModelError, first_line
from specexp.lm.hf.source import hub_fault

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
NUM_STATES = 3  # layers of the target that a head reads
FILES = ("config.json", "*.safetensors")
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


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """What a head's config.json says. `layers` are those of the target whose outputs it reads, in order."""

    name: str
    llama: LlamaConfig  # sizes, activation and rotary angles
    layers: tuple[int, ...]
    num_draft_ids: int
    target_size: int
    norm_before_residual: bool
    target: str  # fingerprint of the target it was trained for; empty if the config does not say

    @property
    def size(self) -> int:
        return int(self.llama.hidden_size)


def folder_of(place: str, revision: str = "") -> Path:
    """The local folder of a head: `place` itself, or a snapshot of the hub id. Raises ModelError."""
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(snapshot_download(place, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:
        fault = hub_fault(place, error) or f"head '{place}' cannot be read: {first_line(error)}"
        raise ModelError(f"{fault}.") from error


def read_config(place: str, target: Any, name_of_target: str) -> Eagle3Config:
    """The config of a head, which fits the target with the config `target`. Raises ModelError."""
    folder = folder_of(place)
    try:
        values = json.loads((folder / "config.json").read_text())
        llama = LlamaConfig.from_dict(values)
        sizes = [int(llama.hidden_size), int(llama.intermediate_size), int(llama.num_attention_heads)]
    except Exception as error:
        raise ModelError(f"head '{place}' has no config.json that can be read: {first_line(error)}") from error
    names = values.get("architectures") or []
    if not set(names) & set(ARCHITECTURES):
        raise ModelError(
            f"head '{place}' is {' and '.join(map(str, names)) or 'of no architecture'}, not {ARCHITECTURES[0]};"
            " draft.eagle3 takes an EAGLE-3 head in the published layout."
        )
    if min(sizes) < 1 or llama.num_hidden_layers != 1:
        raise ModelError(f"head '{place}' has {llama.num_hidden_layers} layers; an EAGLE-3 head here has one.")
    text = target.get_text_config(decoder=True)
    size, ids = int(values.get("target_hidden_size") or llama.hidden_size), int(llama.vocab_size)
    for what, own, there in (("hidden_size", size, text.hidden_size), ("vocab_size", ids, text.vocab_size)):
        if own != there:
            raise ModelError(
                f"head '{place}' was made for a target with {what} {own}, but model '{name_of_target}' has {there};"
                " name the head of this target."
            )
    eagle = values.get("eagle_config") or {}
    if eagle.get("use_aux_hidden_state") is False:
        raise ModelError(
            f"head '{place}' reads one layer of the target (use_aux_hidden_state false), as EAGLE-1 and 2 do;"
            " draft.eagle3 takes a head that reads three."
        )
    return Eagle3Config(
        place, llama, _layers(place, eagle, int(text.num_hidden_layers), name_of_target),
        int(values.get("draft_vocab_size") or ids), size, bool(values.get("norm_before_residual")),
        str((values.get("specexp") or {}).get("target", "")),
    )  # fmt: skip


def _layers(place: str, eagle: dict[str, Any], total: int, name_of_target: str) -> tuple[int, ...]:
    """Layers of the target, by the number of the layer whose *output* is read.

    Without ids in the config, published code reads the states that *enter* the layers 2, L // 2 and L - 3.
    """
    given = eagle.get("eagle_aux_hidden_state_layer_ids")
    result = tuple(given) if given else (1, total // 2 - 1, total - 4)
    if len(result) != NUM_STATES or not all(isinstance(i, int) and 0 <= i < total for i in result):
        raise ModelError(
            f"head '{place}' reads the outputs of the layers {', '.join(map(str, result))}, but it must be"
            f" {NUM_STATES} of the {total} layers of model '{name_of_target}', 0 to {total - 1}."
        )
    return result


def read_weights(config: Eagle3Config, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The weights by name, the decoder layer's as `layer.*`. Raises ModelError for a missing or unknown one."""
    folder, result = folder_of(config.name), {}
    files = sorted(folder.glob("*.safetensors"))
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
        "layer.self_attn.q_proj.weight": (config.llama.num_attention_heads * config.llama.head_dim, 2 * size),
        "norm.weight": (size,),
        "lm_head.weight": (ids, size),
        "embed_tokens.weight": (config.llama.vocab_size, size),
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
    if "lm_head.weight" not in weights and (size != config.target_size or ids != config.llama.vocab_size):
        raise ModelError(f"head '{config.name}' lacks lm_head.weight; get all its files.")
    if "d2t" not in weights and ids != config.llama.vocab_size:
        raise ModelError(f"head '{config.name}' scores {ids} ids and has no d2t, which says what they are.")
    if "d2t" in weights:
        target_ids = torch.arange(ids) + weights["d2t"]
        if len(set(target_ids.tolist())) < ids or not (
            target_ids.min() >= 0 and target_ids.max() < config.llama.vocab_size
        ):
            raise ModelError(
                f"head '{config.name}': d2t must give {ids} different ids below {config.llama.vocab_size} (offsets)."
            )
