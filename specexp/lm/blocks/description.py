"""Reads what a loaded module computes: from its config, its parts and the table of families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from specexp.lm.blocks.block_spec import BlockSpec, ModelSpec, UndescribedError
from specexp.lm.blocks.families import FAMILIES, Family
from specexp.lm.blocks.module_parts import LayerParts, StackParts, find_parts
from specexp.lm.blocks.rotary import QueryScaling, RotarySpec

# Rope types whose angles do not depend on the length.
STATIC_ROTARY = ("default", "linear", "llama3", "yarn", "proportional")
QUANTIZED = "its weights are quantized"
FULL, SLIDING = "full_attention", "sliding_attention"


def refusal(module: Any) -> str | None:
    """The reason why the native forward cannot decode with this module; None if nothing speaks against it."""
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        return "its weights are moved at every call"
    scattered = "its weights are not all on one device in one dtype"
    if any(p.device.type == "meta" for p in module.parameters()):
        return scattered
    if any(type(p.data) is not torch.Tensor for p in module.parameters()):  # quantized by torchao in memory
        return QUANTIZED
    try:
        _, parts, _ = describe(module)
    except UndescribedError as error:
        return str(error)
    experts = {id(p) for layer in parts.layers if layer.mlp is None for p in layer.mixture.parameters()}
    parameters = [*parts.stack.parameters(), *parts.head.parameters()]
    dtypes = {p.dtype for p in parameters if id(p) not in experts}  # routers may have a dtype of their own
    return scattered if len(dtypes) > 1 or len({p.device for p in parameters}) > 1 else None


def describe(module: Any) -> tuple[ModelSpec, StackParts, Family]:
    """The description of a causal language model, and its parts. Raises UndescribedError with the reason."""
    config = module.config.get_text_config(decoder=True)
    family = FAMILIES.get(config.model_type)
    if family is None or not type(module).__module__.startswith("transformers."):
        raise UndescribedError(f"the native forward does not know the family of {type(module).__name__}")
    # FP8, MXFP4 and GGUF files have none any more where their weights were read as floats.
    if getattr(module.config, "quantization_config", None) is not None:
        raise UndescribedError(QUANTIZED)
    parts = find_parts(module)
    return _spec(module, config, family, parts), parts, family


def _spec(module: Any, config: Any, family: Family, parts: StackParts) -> ModelSpec:
    types = _layer_types(config)
    rotary = _rotary_specs(config, family, parts.stack.rotary_emb)
    index = {spec.layer_type: i for i, spec in enumerate(rotary)}
    blocks: list[BlockSpec] = []
    latest: dict[str | None, BlockSpec] = {}  # by layer type: the block whose keys and values others may use
    for i, layer in enumerate(parts.layers):
        kind = types[i] if types else None
        rotates = family.rotates(config, i)
        table = (index[kind] if kind in index else index[None]) if rotates else None
        store, window = sum(block.stores for block in blocks), _window(config, kind)
        blocks.append(_block(config, family, layer, store, table, window, latest.get(kind)))
        if blocks[-1].stores:
            latest[kind] = blocks[-1]
    return ModelSpec(
        tuple(blocks),
        rotary,
        _query_scaling(config),
        _embedding_multiplier(config, parts.embedding),
        float(getattr(module, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)),
        float(getattr(config, "final_logit_softcapping", None) or 0),
    )


def _block(
    config: Any, family: Family, layer: LayerParts, store: int, table: int | None, window: int, source: BlockSpec | None
) -> BlockSpec:
    """The description of a block. `source` is the block whose keys and values it uses if it computes none."""
    module = layer.attention.module
    if not getattr(module, "is_causal", True):
        raise UndescribedError("its attention is not causal")
    if getattr(config, "clip_qkv", None) is not None:
        raise UndescribedError("its attention clips queries, keys and values")
    heads = int(config.num_attention_heads)
    head_dim = int(layer.attention.out.weight.shape[1]) // heads
    rows = sum(part.weight.shape[0] for part in layer.attention.projections) - heads * head_dim
    values_are_keys = len(layer.attention.projections) == 2
    kv_heads, rest = divmod(rows, head_dim if values_are_keys else 2 * head_dim)
    if not rows and source is not None and source.head_dim == head_dim:
        kv_heads, store = source.kv_heads, source.store
    if rest or kv_heads < 1 or heads % kv_heads:
        raise UndescribedError("its projections have sizes that are not known")
    query_norm = layer.attention.query_norm
    return BlockSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        score_multiplier=float(module.scaling),
        store=store,
        stores=rows > 0,
        window=window,
        score_softcap=float(getattr(module, "attn_logit_softcapping", None) or 0),
        sinks=hasattr(module, "sinks"),
        rotary=table,
        heads_outermost=hasattr(module, "query_key_value"),
        values_are_keys=values_are_keys,
        whole_qk_norm=query_norm is not None and _size(query_norm) == heads * head_dim != head_dim,
        qk_norm_last=family.qk_norm_last,
        parallel=layer.shared_norm or bool(getattr(config, "use_parallel_residual", False)),
        experts_per_token=_experts_per_token(config) if layer.mixture is not None else 0,
        residual_multiplier=float(getattr(layer.layer, "residual_multiplier", 1.0)),
        output_multiplier=float(getattr(layer.layer, "layer_scalar", 1.0)),
    )


def _experts_per_token(config: Any) -> int:
    return int(
        next(getattr(config, name) for name in ("num_experts_per_tok", "top_k_experts") if hasattr(config, name))
    )


def _size(norm: Any) -> int:
    """Number of values that a norm runs over, if it is one norm; 0 if it has one for each head."""
    weight = getattr(norm, "weight", None)
    return 0 if weight is None or weight.dim() > 1 else int(weight.shape[0])


def _layer_types(config: Any) -> Sequence[str] | None:
    types: Sequence[str] | None = getattr(config, "layer_types", None)
    other = next((kind for kind in types or () if kind not in (FULL, SLIDING)), None)
    if other is not None:
        raise UndescribedError(f"it has {other} layers")
    return types


def _window(config: Any, kind: str | None) -> int:
    """The sliding window of a layer in positions, the token's own included; 0 for unlimited."""
    if kind == FULL or not getattr(config, "use_sliding_window", True):
        return 0
    return int(getattr(config, "sliding_window", None) or 0)


def _rotary_specs(config: Any, family: Family, rotary: Any) -> tuple[RotarySpec, ...]:
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = {kind: each for kind, each in parameters.items() if isinstance(each, Mapping)}
    used = getattr(rotary, "layer_types", None)  # a module without them has one table
    by_type = {None: parameters} if used is None else {kind: each for kind, each in nested.items() if kind in used}
    for each in by_type.values():
        kind = each.get("rope_type", "default")
        longrope = kind == "longrope" and used is None and each.get("original_max_position_embeddings")
        if kind not in STATIC_ROTARY and not longrope:
            raise UndescribedError(f"its rotary angles ({kind}) depend on the length")
    return tuple(RotarySpec(kind, family.adjacent_pairs, family.angles) for kind in sorted(by_type, key=str))


def _query_scaling(config: Any) -> QueryScaling | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    beta = parameters.get("llama_4_scaling_beta")
    return QueryScaling(float(beta), int(parameters["original_max_position_embeddings"])) if beta else None


def _embedding_multiplier(config: Any, embedding: Any) -> float:
    scale = getattr(embedding, "embed_scale", None)
    if scale is not None:
        return float(scale.to(embedding.weight.dtype))  # rounded as the module rounds it
    return float(getattr(config, "embedding_multiplier", None) or 1.0)
