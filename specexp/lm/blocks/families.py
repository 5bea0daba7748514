"""The model families that the native forward knows, and what their code does that neither config nor weights show.

A family is named by the model type of its text config. What can be read from a module is read there
(`module_parts.py`, `description.py`): norms before and after, norms of queries and keys, joined projections, biases,
windows, multipliers, experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Rotates = Callable[[Any, int], bool]


def _always(config: Any, layer: int) -> bool:
    return True


def _sliding_layers(config: Any, layer: int) -> bool:
    return bool(config.layer_types[layer] == "sliding_attention")


def _sliding_layers_if_any(config: Any, layer: int) -> bool:
    return config.sliding_window is None or _sliding_layers(config, layer)


def _by_list(config: Any, layer: int) -> bool:
    return bool(config.no_rope_layers[layer])  # despite its name, 1 for the layers that rotate


@dataclass(frozen=True, slots=True)
class Family:
    """Facts of a family's code. The defaults are Llama's."""

    layer_norm: bool = False  # norms subtract the mean
    norm_offset: float = 0.0  # norms multiply by weight + offset
    wide_norms: bool = False  # norms multiply by their weights before they round to the dtype
    adjacent_pairs: bool = False  # values 2 i and 2 i + 1 are rotated together, not i and i + R / 2
    angles: str = "twice"  # the layout of the rotary module's angles (`RotarySpec.layout`)
    rotates: Rotates = _always  # whether a layer rotates queries and keys
    qk_norm_last: bool = False  # queries and keys are normalised after they are rotated


_LLAMA, _LAYER_NORM, _WIDE = Family(), Family(layer_norm=True), Family(wide_norms=True)
_GEMMA = Family(norm_offset=1.0, wide_norms=True)
_GLM = Family(adjacent_pairs=True)
_COHERE = Family(layer_norm=True, adjacent_pairs=True, angles="repeated")

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("apertus", "arcee", "cwm", "dots1", "glm4_moe", "granite", "granitemoe", "granitemoeshared", "hy_v3",
         "internlm3", "iquestcoder", "llama", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "olmoe",
         "phi3", "qwen2", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_vl_text",
         "seed_oss", "solar_open"),
        _LLAMA,
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("gpt_neox", "jais2", "phi", "stablelm", "starcoder2"), _LAYER_NORM),
    **dict.fromkeys(("flex_olmo", "gemma4_text", "gemma4_unified_text", "olmo2", "olmo3"), _WIDE),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe", "glm", "glm4"), _GLM),
    **dict.fromkeys(("exaone4", "exaone_moe"), Family(rotates=_sliding_layers_if_any)),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe"), Family(qk_norm_last=True)),
    "cohere": _COHERE,
    "cohere2": replace(_COHERE, rotates=_sliding_layers),
    "gpt_oss": Family(angles="once"),
    "helium": replace(_GLM, wide_norms=True),
    "nemotron": Family(layer_norm=True, norm_offset=1.0),
    "smollm3": Family(rotates=_by_list),
}  # fmt: skip
