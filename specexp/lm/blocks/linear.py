"""Products with a weight matrix, by the library call that is fastest for the number of rows.

Shapes: T tokens, in and out features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PACK_ROWS = 3  # from this many rows on, oneDNN's packed product is faster than MKL's, which is slow on some CPUs
PACK_SIZE = 1 << 16  # values of a weight; for a smaller one, calling oneDNN takes longer than the product
PACK_LIMIT = 2 << 30  # bytes of a model; packing keeps copies of the weights, so larger models are not packed


class Linear:
    """x[T, in] -> x W^T + b, by the product that is fastest for the number of rows. The choice depends on T alone, so
    that a prompt's logits do not change from run to run.

    With `pack`, the product of few rows reads a contiguous copy of W^T in memory order: reading W itself took between
    the same time and four times as long, depending on where its pages lie.
    """

    __slots__ = ("bias", "packed", "transposed", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: bool) -> None:
        self.weight, self.bias = weight, bias
        self.transposed = weight.t().contiguous() if pack else weight.t()
        worth = pack and weight.numel() >= PACK_SIZE
        self.packed: Tensor | None = torch.ops.mkldnn._reorder_linear_weight(weight, 8) if worth else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None and x.shape[0] >= PACK_ROWS:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return result
        if self.bias is not None:
            return torch.addmm(self.bias, x, self.transposed)
        return torch.mm(x, self.transposed)

    def added(self, x: Tensor, residual: Tensor, multiplier: float = 1.0) -> Tensor:
        """`multiplier` times the product of `x`, added to `residual`[T, out]."""
        if (self.packed is not None and x.shape[0] >= PACK_ROWS) or self.bias is not None:
            return self(x).mul_(multiplier).add_(residual) if multiplier != 1 else self(x).add_(residual)
        return torch.addmm(residual, x, self.transposed, alpha=multiplier)


def joined(parts: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Join several linear modules into one weight [sum of out, in] and bias; the modules' own become views of it."""
    with torch.no_grad():
        if len(parts) == 1:
            return parts[0].weight.detach(), None if parts[0].bias is None else parts[0].bias.detach()
        weight = torch.cat([part.weight for part in parts])
        biased = [part for part in parts if part.bias is not None]
        bias = torch.zeros_like(weight[:, 0]) if biased else None
        start = 0
        for part in parts:
            stop = start + part.weight.shape[0]
            part.weight.data = weight[start:stop]
            if bias is not None and part.bias is not None:
                bias[start:stop] = part.bias
                part.bias.data = bias[start:stop]
            start = stop
    return weight, bias
