"""RMSNorm as one Triton kernel. Imports Triton.

A program normalises one row, or the short rows of some heads, each by itself: a row's bits depend on it alone.

Shapes: T rows, H heads, D normalised values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specexp.lm.kernels.launch import block_of, on_device

VALUES = 1024  # of a program that has the short rows of several heads, about


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, heads: tl.tensor, row_stride: tl.tensor, head_stride: tl.tensor,
    eps: tl.tensor, SIZE: tl.constexpr, HEAD_BLOCK: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr,
    PER_HEAD: tl.constexpr, ROUND_FIRST: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEAD_BLOCK + tl.arange(0, HEAD_BLOCK)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    inside = (at < SIZE) & (head < heads)
    values = tl.load(x + row * row_stride + head * head_stride + at, mask=inside, other=0.0).to(tl.float32)
    result = values * tl.rsqrt(tl.sum(values * values, 1) / SIZE + eps)[:, None]
    if ROUND_FIRST:
        result = result.to(out.dtype.element_ty).to(tl.float32)
    if WEIGHTED:
        place = head * SIZE + at if PER_HEAD else head * 0 + at
        result = result * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + (row * heads + head) * SIZE + at, result.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`reference.rms_norm` of x[T, D] or x[T, H, D], whose last dimension is contiguous."""
    num, size, heads = x.shape[0], x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    per_head = weight is not None and weight.dim() == 2
    block = block_of(size)
    head_block = min(max(1, VALUES // block), block_of(heads))
    with on_device(x):
        _rms_norm[(num, triton.cdiv(heads, head_block))](
            x, x if weight is None else weight, out, heads, x.stride(0), x.stride(1) if x.dim() == 3 else 0, eps,
            SIZE=size, HEAD_BLOCK=head_block, BLOCK=block, WEIGHTED=weight is not None, PER_HEAD=per_head,
            ROUND_FIRST=weight is not None and per_head and weight.dtype == x.dtype,
            num_warps=8 if size > 4096 else 4,
        )  # fmt: skip
    return out
