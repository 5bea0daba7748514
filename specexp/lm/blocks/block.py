"""The weights of a block, joined and laid out for the native forward, next to its description.

Shapes: H heads, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specexp.lm.blocks.block_spec import BlockSpec
from specexp.lm.blocks.families import Family
from specexp.lm.blocks.feed_forward import FeedForward, Mixture, Mlp, NormedMlp, RoutedExperts, activation
from specexp.lm.blocks.layer_inputs import LayerEmbeddings, LayerInput
from specexp.lm.blocks.linear import Linear, joined
from specexp.lm.blocks.module_parts import AttentionParts, LayerParts, StackParts
from specexp.lm.blocks.norms import Norm, layer_norm, rms_norm
from specexp.lm.kernels.table import PYTORCH, Kernels

Weights = tuple[Tensor, Tensor | None]  # a norm's weight and bias


@dataclass(frozen=True, slots=True)
class Block:
    """A block's description and weights. A norm that is absent is None."""

    spec: BlockSpec
    attention_norm: Norm | None
    projection: Linear  # to queries, keys and values
    qk_norm: Norm | None  # of queries and keys [T, H + K, d] together
    query_norm: Norm | None  # of all queries [T, H d]; only if the norms run over all heads
    key_norm: Norm | None
    value_norm: Norm | None  # of values [T, K, d]
    sinks: Tensor | None  # [H]
    out: Linear
    attention_post_norm: Norm | None
    mlp_norm: Norm | None  # None also if the MLP reads what attention reads
    mlp: FeedForward
    mixture: Callable[[Tensor], Tensor] | None  # experts beside the MLP, which read the residual stream
    mlp_post_norm: Norm | None
    layer_input: LayerInput | None


class BlockLoader:
    """Makes blocks from the parts of a module."""

    def __init__(self, family: Family, like: Tensor, pack: bool, kernels: Kernels = PYTORCH) -> None:
        self._family, self._like, self._pack, self._kernels = family, like, pack, kernels

    def block(self, spec: BlockSpec, parts: LayerParts) -> Block:
        """The block of these parts, whose projections become views of joined ones."""
        before_attention, after_attention, before_mlp, after_mlp = parts.norms
        attention = parts.attention
        queries = None if attention.query_norm is None else self._weights(attention.query_norm)
        keys = None if attention.key_norm is None else self._weights(attention.key_norm)
        whole = spec.whole_qk_norm
        return Block(
            spec=spec,
            attention_norm=self._norm_if_any(before_attention),
            projection=self._linear(attention.projections),
            qk_norm=None if queries is None or whole else self._per_head(spec, attention, queries, keys),
            query_norm=self.norm(attention.query_norm) if whole else None,
            key_norm=self.norm(attention.key_norm) if whole else None,
            value_norm=None if attention.value_norm is None else self._plain_norm(attention.value_norm, spec.head_dim),
            sinks=attention.module.sinks.detach() if spec.sinks else None,
            out=self._linear([attention.out]),
            attention_post_norm=self._norm_if_any(after_attention),
            mlp_norm=None if parts.shared_norm else self._norm_if_any(before_mlp),
            mlp=self._feed_forward(spec, parts),
            mixture=self._mixture(spec, parts) if parts.mixture_norms else None,
            mlp_post_norm=self._norm_if_any(after_mlp),
            layer_input=self._layer_input(parts),
        )

    def layer_embeddings(self, parts: StackParts) -> LayerEmbeddings | None:
        """The per-layer embeddings of a stack that has them."""
        if not parts.layer_embeddings:
            return None
        embedding, projection, norm = parts.layer_embeddings
        return LayerEmbeddings(
            embedding.weight.detach(),
            float(embedding.embed_scale.to(embedding.weight.dtype)),
            self._linear([projection]),
            float(parts.stack.per_layer_model_projection_scale),
            self.norm(norm),
            float(parts.stack.per_layer_input_scale),
        )

    def norm(self, module: Any) -> Norm:
        """The function of a norm."""
        weight, bias = self._weights(module)
        return self._norm(weight, bias, _eps(module), weight.shape[-1])

    def _linear(self, parts: Sequence[Any]) -> Linear:
        return Linear(*joined(parts), self._pack, self._kernels.product)

    def _norm_if_any(self, module: Any) -> Norm | None:
        return None if module is None else self.norm(module)

    def _norm(self, weight: Tensor, bias: Tensor | None, eps: float, size: int) -> Norm:
        if self._family.layer_norm:
            return layer_norm(weight, bias, eps, size)
        return rms_norm(weight, eps, size, self._like, self._kernels.rms_norm)

    def _weights(self, module: Any) -> Weights:
        """A norm's weight, as it is multiplied, and bias. Norms of single heads are stacked: [heads, d]."""
        each = list(module.norms) if hasattr(module, "norms") else [module]
        weight = torch.stack([part.weight.detach() for part in each]) if len(each) > 1 else each[0].weight.detach()
        family = self._family
        if family.wide_norms:
            weight = weight.float()
        if family.norm_offset:
            weight = weight + family.norm_offset
        biases = [part.bias.detach() for part in each if getattr(part, "bias", None) is not None]
        if not biases:
            return weight, None
        return weight, torch.stack(biases) if len(each) > 1 else biases[0]

    def _plain_norm(self, module: Any, size: int) -> Norm:
        """A norm without a weight."""
        return rms_norm(None, _eps(module), size, self._like, self._kernels.rms_norm)

    def _per_head(self, spec: BlockSpec, attention: AttentionParts, queries: Weights, keys: Weights | None) -> Norm:
        """One function for queries and keys, if there are keys: the weights of all heads, stacked."""
        each = [(queries, spec.heads)] if keys is None else [(queries, spec.heads), (keys, spec.kv_heads)]
        weight = torch.cat([weight.expand(count, -1) for (weight, _), count in each])
        biases = [bias.expand(count, -1) for (_, bias), count in each if bias is not None]
        return self._norm(weight, torch.cat(biases) if biases else None, _eps(attention.query_norm), spec.head_dim)

    def _feed_forward(self, spec: BlockSpec, parts: LayerParts) -> FeedForward:
        if parts.mlp is None:
            return Mixture(parts.mixture, spec.experts_per_token)
        up, down = self._linear(parts.mlp.up), self._linear([parts.mlp.down])
        mlp = Mlp(up, down, activation(parts.mlp.act), parts.mlp.gated, self._kernels.gated)
        return NormedMlp(mlp, self.norm(parts.mixture_norms[0])) if parts.mixture_norms else mlp

    def _mixture(self, spec: BlockSpec, parts: LayerParts) -> RoutedExperts:
        """Experts beside an MLP, with their router and norms."""
        before, after = (self.norm(norm) for norm in parts.mixture_norms[1:])
        return RoutedExperts(parts.mixture, before, after, spec.experts_per_token)

    def _layer_input(self, parts: LayerParts) -> LayerInput | None:
        if not parts.layer_input:
            return None
        gate, act, projection, norm = parts.layer_input
        linear = [self._linear([part]) for part in (gate, projection)]
        return LayerInput(linear[0], activation(act), linear[1], self.norm(norm))


def _eps(module: Any) -> float:
    module = module.norms[0] if hasattr(module, "norms") else module
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
