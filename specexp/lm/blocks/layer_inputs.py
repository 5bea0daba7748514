"""Per-layer embeddings: each token has, besides its embedding, a small vector for every block (Gemma 3n, Gemma 4).

Shapes: T tokens, D hidden, L layers, P values per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specexp.lm.blocks.feed_forward import Activation
from specexp.lm.blocks.linear import Linear
from specexp.lm.blocks.norms import Norm


@dataclass(frozen=True, slots=True)
class LayerEmbeddings:
    """Computes the vectors of all blocks: the token's own, and a projection of its embedding."""

    embedding: Tensor  # [V, L P]
    embedding_multiplier: float
    projection: Linear  # D to L P
    projection_multiplier: float
    norm: Norm
    multiplier: float

    def __call__(self, tokens: Tensor, x: Tensor, layers: int) -> Tensor:
        """Vectors [L, T, P] of tokens[T], whose embeddings are x[T, D]."""
        own = self.embedding.index_select(0, tokens).mul_(self.embedding_multiplier)
        shape = (x.shape[0], layers, -1)
        projected = self.norm((self.projection(x) * self.projection_multiplier).view(shape))
        return projected.add_(own.view(shape)).mul_(self.multiplier).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class LayerInput:
    """Adds a block's vectors to its output, through a gate."""

    gate: Linear  # D to P
    act: Activation
    projection: Linear  # P to D
    norm: Norm

    def added(self, x: Tensor, vectors: Tensor) -> Tensor:
        """x[T, D], with the gated vectors[T, P] added."""
        return torch.add(x, self.norm(self.projection(self.act(self.gate(x)).mul_(vectors))))
