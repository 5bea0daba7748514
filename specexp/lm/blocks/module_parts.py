"""Finds the parts of a loaded module by their names: one place for the names that families use.

Each part that is found is noted as read. A parameter that is left over belongs to something this forward would leave
out, and the module is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from specexp.lm.blocks.block_spec import UndescribedError

ATTENTION = ("self_attn", "attention")
PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("qkv_proj",), ("query_key_value",))
OUT = ("o_proj", "dense")
QK_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
MLP = ("mlp", "block_sparse_moe")
# Names of an MLP's projections: those before the activation, the one after it.
GATED = ((("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj"))
PLAIN = (
    (("up_proj",), "down_proj"), (("c_fc",), "c_proj"), (("dense_h_to_4h",), "dense_4h_to_h"), (("fc1",), "fc2"),
)  # fmt: skip
ACTIVATIONS = ("act_fn", "activation_fn", "act")
EMBEDDINGS, FINAL_NORMS = ("embed_tokens", "embed_in"), ("norm", "final_layer_norm", "final_layernorm")
# The norms of a block, by the names it has: before and after attention, before and after the MLP.
Placement = tuple[str | None, str | None, str | None, str | None]
PLACEMENTS: tuple[Placement, ...] = (
    ("input_layernorm", None, "post_attention_layernorm", None),
    ("input_layernorm", None, "input_layernorm", None),
    ("attention_layernorm", None, "feedforward_layernorm", None),
    (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
)
MIXTURE_NORMS = ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")
NORMS = {name for placement in PLACEMENTS for name in placement if name}


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The modules of one attention layer."""

    module: Any
    projections: tuple[Any, ...]  # queries, keys, values; or one, joined; or fewer, if it has fewer
    out: Any
    query_norm: Any
    key_norm: Any
    value_norm: Any


@dataclass(frozen=True, slots=True)
class MlpParts:
    """The modules of a dense MLP."""

    up: tuple[Any, ...]  # gate and up, or fewer, joined
    down: Any
    act: Any
    gated: bool


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The modules of one block."""

    layer: Any
    norms: tuple[Any, Any, Any, Any]  # before and after attention, before and after the MLP; None where there is none
    shared_norm: bool  # attention and MLP read the same normed input
    attention: AttentionParts
    mlp: MlpParts | None
    mixture: Any  # a module with router and experts, in place of the MLP; or the block itself, which has them beside it
    mixture_norms: tuple[Any, ...]  # of experts beside an MLP: after the MLP, before and after the experts; or none
    layer_input: tuple[Any, ...]  # gate, activation, projection and norm of a per-layer embedding; or none


@dataclass(frozen=True, slots=True)
class StackParts:
    """The modules of a whole decoder."""

    stack: Any
    embedding: Any
    layers: tuple[LayerParts, ...]
    final_norm: Any
    head: Any
    layer_embeddings: tuple[Any, ...]  # embedding, projection and norm; or none


def find_parts(module: Any) -> StackParts:
    """The parts of a causal language model. Raises UndescribedError, which names what is not known."""
    stack = getattr(module, "model", None) or getattr(module, "gpt_neox", None)
    stack = getattr(stack, "language_model", getattr(stack, "text_model", stack))
    if stack is None or not hasattr(stack, "layers"):
        raise UndescribedError("its blocks are not where they are looked for")
    embedding, final_norm = _one(stack, EMBEDDINGS), _one(stack, FINAL_NORMS)
    layers = tuple(_layer(layer) for layer in stack.layers)
    extra = _all(stack, "embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
    read = {id(p) for part in (embedding, final_norm, *stack.layers, *extra) for p in part.parameters()}
    _none_left(stack, read, "its decoder has")
    return StackParts(stack, embedding, layers, final_norm, _linear(module, "lm_head"), extra)


def _layer(layer: Any) -> LayerParts:
    names = {name for name, _ in layer.named_children() if name in NORMS}
    placement = next((p for p in PLACEMENTS if {name for name in p if name} == names), None)
    if placement is None:
        raise UndescribedError(f"its blocks have norms in an unknown arrangement: {', '.join(sorted(names)) or 'none'}")
    norms = tuple(getattr(layer, name) if name else None for name in placement)
    attention = _attention(_one(layer, ATTENTION))
    feed_forward = _one(layer, MLP)
    beside = _all(layer, "router", "experts")
    mixture = layer if beside else feed_forward if hasattr(feed_forward, "experts") else None
    mlp = _mlp(feed_forward) if beside or mixture is None else None
    mixture_norms = _all(layer, *MIXTURE_NORMS) if beside else ()
    layer_input = _all(layer, "per_layer_input_gate", "act_fn", "per_layer_projection", "post_per_layer_input_norm")
    parts: list[Any] = [norm for norm in norms if norm is not None]
    parts += [*attention.projections, attention.out, attention.query_norm, attention.key_norm]
    parts += [*beside, *mixture_norms, *layer_input]
    parts += [mixture] if mlp is None else [*mlp.up, mlp.down, mlp.act]
    read = {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    read.add(id(getattr(attention.module, "sinks", None)))
    _none_left(layer, read, "its blocks have")
    shared = placement[0] is not None and placement[0] == placement[2]
    return LayerParts(
        layer,
        (norms[0], norms[1], norms[2], norms[3]),
        shared,
        attention,
        mlp,
        mixture,
        mixture_norms,
        layer_input,
    )


def _attention(module: Any) -> AttentionParts:
    names = next((names for names in PROJECTIONS if getattr(module, names[0], None) is not None), None)
    if names is None:
        raise UndescribedError(f"its attention ({type(module).__name__}) has no known projections")
    query_norm, key_norm = next(
        ((getattr(module, q), getattr(module, k, None)) for q, k in QK_NORMS if getattr(module, q, None) is not None),
        (None, None),
    )
    projections = tuple(_linear(module, name) for name in names if getattr(module, name, None) is not None)
    value_norm = getattr(module, "v_norm", None)
    return AttentionParts(module, projections, _linear(module, *OUT), query_norm, key_norm, value_norm)


def _mlp(module: Any) -> MlpParts:
    for gated, kinds in ((True, GATED), (False, PLAIN)):
        for up, down in kinds:
            if all(isinstance(getattr(module, name, None), nn.Module) for name in (*up, down)):
                parts = tuple(_linear(module, name) for name in up)
                return MlpParts(parts, _linear(module, down), _one(module, ACTIVATIONS), gated)
    raise UndescribedError(f"its MLP ({type(module).__name__}) has no known projections")


def _all(module: Any, *names: str) -> tuple[Any, ...]:
    """These parts, or nothing if there are none of them. Raises UndescribedError if there are only some."""
    result = tuple(getattr(module, name) for name in names if hasattr(module, name))
    if result and len(result) < len(names):
        raise UndescribedError(f"{type(module).__name__} has only some of {', '.join(names)}")
    return result


def _one(module: Any, names: Sequence[str]) -> Any:
    result = next((getattr(module, name) for name in names if getattr(module, name, None) is not None), None)
    if result is None:
        raise UndescribedError(f"{type(module).__name__} has none of {', '.join(names)}")
    return result


def _linear(module: Any, *names: str) -> Any:
    result = _one(module, names)
    if type(result) is not nn.Linear:
        raise UndescribedError(f"a projection of {type(module).__name__} is {type(result).__name__}, no nn.Linear")
    return result


def _none_left(module: Any, read: set[int], where: str) -> None:
    left = next((name for name, p in module.named_parameters() if id(p) not in read), None)
    if left is not None:
        raise UndescribedError(f"{where} a part that is not known: {left}")
