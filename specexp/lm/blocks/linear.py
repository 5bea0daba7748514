"""Products with a weight matrix, by the library call that is fastest for the number of rows.

Shapes: T tokens, in and out features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specexp.lm.kernels.product_choice import ProductChoice
from specexp.lm.kernels.table import Product

PACK_ROWS = 3  # from this many rows on, oneDNN's packed product is faster than MKL's, which is slow on some CPUs
PACK_SIZE = 1 << 17  # values of a weight; for a smaller one, calling oneDNN takes longer than the product
PACK_LIMIT = 2 << 30  # bytes of a model; packing keeps copies of the weights, so larger models are not packed
MOST_EXACT_ROWS = 17  # up to which every number of rows has a primitive of its own


def primitive_rows(num: int) -> int:
    """The number of rows with which oneDNN computes a product of `num` rows: the next one that it has a primitive for.

    A primitive is compiled for each number of rows and each size of a weight. It takes milliseconds and half a
    megabyte, and is kept, so that a process that meets all lengths of prompts and batches would grow by hundreds of
    megabytes. Beyond MOST_EXACT_ROWS there are five sizes up to every power of two: four of a token more than a round
    number, as drafted chains and trees have, and the power itself, which is a piece of a long prompt.
    """
    if num <= MOST_EXACT_ROWS:
        return num
    step = 1 << ((num - 2).bit_length() - 3)
    return min(-(-(num - 1) // step) * step + 1, 1 << (num - 1).bit_length())


class Linear:
    """x[T, in] -> x W^T + b, by the product that is fastest for the number of rows. The choice depends on T alone, so
    that a prompt's logits do not change from run to run.

    With `pack`, the product of few rows reads a contiguous copy of W^T in memory order: reading W itself took between
    the same time and four times as long, depending on where its pages lie. Where oneDNN computes, x gets rows of zeros
    up to `primitive_rows`. With `use`, a kernel computes the products of the numbers of rows that it is chosen for.
    """

    __slots__ = ("_chosen", "bias", "compiled", "packed", "transposed", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: bool) -> None:
        self.weight, self.bias = weight, bias
        self.transposed = weight.t().contiguous() if pack else weight.t()
        worth = pack and weight.numel() >= PACK_SIZE
        self.packed: Tensor | None = torch.ops.mkldnn._reorder_linear_weight(weight, 8) if worth else None
        # In float32 all other products are MKL's, which compiles nothing.
        self.compiled = worth or (weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16))
        self._chosen: tuple[Product, ProductChoice] | None = None

    def use(self, kernel: Product, choice: ProductChoice) -> None:
        """Compute products by the kernel, where `choice` has a tiling for the number of rows."""
        self._chosen = kernel, choice

    @property
    def is_chosen(self) -> bool:
        """True if the kernel computes products of some numbers of rows; of all, if it was chosen for one order."""
        return self._chosen is not None

    def __call__(self, x: Tensor) -> Tensor:
        num = x.shape[0]
        if self._chosen is not None and (tiling := self._chosen[1].of(num)) is not None:
            return self._chosen[0](x, self.weight, self.bias, None, 1.0, tiling)
        if num > MOST_EXACT_ROWS and self.compiled and (more := primitive_rows(num) - num):
            return self._product(pad(x, (0, 0, 0, more)))[:num]
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        if self.packed is not None and x.shape[0] >= PACK_ROWS:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return result
        if self.bias is not None:
            return torch.addmm(self.bias, x, self.transposed)
        return torch.mm(x, self.transposed)

    def added(self, x: Tensor, residual: Tensor, multiplier: float = 1.0, overwrite: bool = False) -> Tensor:
        """`multiplier` times the product of `x`, added to `residual`[T, out]; with `overwrite` the result may be
        written there."""
        num = x.shape[0]
        if self._chosen is not None and (tiling := self._chosen[1].of(num)) is not None:
            out = residual if overwrite else None
            return self._chosen[0](x, self.weight, self.bias, residual, multiplier, tiling, out)
        if (self.packed is not None and num >= PACK_ROWS) or self.bias is not None:
            return self(x).mul_(multiplier).add_(residual) if multiplier != 1 else self(x).add_(residual)
        more = primitive_rows(num) - num if num > MOST_EXACT_ROWS and self.compiled else 0
        if more:
            x, residual = pad(x, (0, 0, 0, more)), pad(residual, (0, 0, 0, more))
        result = torch.addmm(residual, x, self.transposed, alpha=multiplier)
        return result[:num] if more else result


def joined(parts: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Join several linear modules into one weight [sum of out, in] and bias; the modules' own become views of it.

    Weights that were joined before stay where they are, so that a second forward of a module takes no more memory.
    """
    with torch.no_grad():
        if len(parts) == 1:
            return parts[0].weight.detach(), None if parts[0].bias is None else parts[0].bias.detach()
        before = _shared([part.weight.detach() for part in parts])
        weight = torch.cat([part.weight for part in parts]) if before is None else before
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


def _shared(weights: Sequence[Tensor]) -> Tensor | None:
    """The tensor of which the weights[out, in] are the consecutive rows; None if they lie elsewhere."""
    first, place, size = weights[0], weights[0].storage_offset(), weights[0].shape[1]
    for weight in weights:
        apart = weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        if apart or not weight.is_contiguous() or weight.storage_offset() != place or weight.shape[1] != size:
            return None
        place += weight.numel()
    return first.as_strided((sum(weight.shape[0] for weight in weights), size), (size, 1))
