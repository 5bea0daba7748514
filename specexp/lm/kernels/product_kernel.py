"""Products of few rows with a weight, as Triton kernels. Imports Triton.

A program computes some outputs of up to 64 rows, from all inputs or from one split of them: the weight is read once
for 64 rows. Rows come in blocks of 16, the least that `tl.dot` takes, and each block has a dot of its own: with more
rows in one, a GPU may use another instruction, which sums in another order. The parts of splits are added in their
order by a second kernel. A row's sums therefore run in an order that its tiling alone fixes, in float32.

Shapes: T rows, in and out features, S splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specexp.lm.kernels.launch import LEAST_DOT, on_device
from specexp.lm.kernels.product_choice import Tiling, default_tiling

ROWS = LEAST_DOT
MOST_BLOCKS = 4  # of rows in a program: their sums stay in registers
SHARED = 96 << 10  # bytes of shared memory that blocks on their way may take: two programs fit a multiprocessor
MOST_STAGES = 6  # loads on their way at once
ADD_BLOCK = 256  # outputs of a program that adds parts


@triton.jit  # type: ignore[untyped-decorator]
def _inputs_of(
    x: tl.tensor, row: tl.tensor, at: tl.tensor, num: tl.tensor, stop: tl.tensor, row_stride: tl.tensor,
    EVEN: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load x[row, at]; zeros after the last row, and at and after `stop`."""
    places = x + row[:, None].to(tl.int64) * row_stride + at[None, :]
    if EVEN:
        return tl.load(places, mask=(row < num)[:, None], other=0.0)
    return tl.load(places, mask=(row < num)[:, None] & (at < stop)[None, :], other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _finish(
    total: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor, row: tl.tensor, at: tl.tensor,
    num: tl.tensor, outputs: tl.tensor, residual_stride: tl.tensor, out_stride: tl.tensor, multiplier: tl.tensor,
    BIASED: tl.constexpr, ADDS: tl.constexpr,
) -> None:  # fmt: skip
    """Write (total + bias) * multiplier + residual to out[row, at], rounded once."""
    inside = (row < num)[:, None] & (at < outputs)[None, :]
    if BIASED:
        total = total + tl.load(bias + at, mask=at < outputs, other=0.0).to(tl.float32)[None, :]
    total = total * multiplier
    if ADDS:
        places = residual + row[:, None].to(tl.int64) * residual_stride + at[None, :]
        total = total + tl.load(places, mask=inside, other=0.0).to(tl.float32)
    places = out + row[:, None].to(tl.int64) * out_stride + at[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _write(
    total: tl.tensor, parts: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor, row: tl.tensor,
    at: tl.tensor, num: tl.tensor, outputs: tl.tensor, residual_stride: tl.tensor, out_stride: tl.tensor,
    multiplier: tl.tensor, SPLIT: tl.constexpr, BIASED: tl.constexpr, ADDS: tl.constexpr,
) -> None:  # fmt: skip
    """Write a block's result, or its part of one to parts[S, T, out]."""
    if SPLIT:
        places = parts + (tl.program_id(1).to(tl.int64) * num + row[:, None]) * outputs + at[None, :]
        tl.store(places, total, mask=(row < num)[:, None] & (at < outputs)[None, :])
    else:
        _finish(
            total, bias, residual, out, row, at, num, outputs, residual_stride, out_stride, multiplier, BIASED, ADDS
        )


# Not compiled again for one row, or for 16: the code is the same for all numbers of rows with as many blocks.
@triton.jit(do_not_specialize=["num"])  # type: ignore[untyped-decorator]
def _multiply(
    x: tl.tensor, weight: tl.tensor, parts: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor,
    num: tl.tensor, outputs: tl.tensor, inputs: tl.tensor, each: tl.tensor, row_stride: tl.tensor,
    weight_stride: tl.tensor, residual_stride: tl.tensor, out_stride: tl.tensor, multiplier: tl.tensor,
    OUT_BLOCK: tl.constexpr, IN_BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    BIASED: tl.constexpr, ADDS: tl.constexpr,
) -> None:  # fmt: skip
    """Products of `OUT_BLOCK` outputs with `BLOCKS` blocks of rows, over `each` inputs."""
    row = tl.program_id(2) * (BLOCKS * 16) + tl.arange(0, 16)
    output = tl.program_id(0) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    start = tl.program_id(1) * each
    stop = tl.minimum(start + each, inputs)
    here = weight + output[None, :].to(tl.int64) * weight_stride
    first = tl.zeros([16, OUT_BLOCK], tl.float32)
    second, third, fourth = first, first, first
    for begin in range(start, stop, IN_BLOCK):
        at = begin + tl.arange(0, IN_BLOCK)
        if EVEN:
            block = tl.load(here + at[:, None])
        else:
            block = tl.load(here + at[:, None], mask=(at < stop)[:, None] & (output < outputs)[None, :], other=0.0)
        first = tl.dot(_inputs_of(x, row, at, num, stop, row_stride, EVEN), block, first, input_precision="ieee")
        if BLOCKS > 1:
            rows = _inputs_of(x, row + 16, at, num, stop, row_stride, EVEN)
            second = tl.dot(rows, block, second, input_precision="ieee")
        if BLOCKS > 2:
            rows = _inputs_of(x, row + 32, at, num, stop, row_stride, EVEN)
            third = tl.dot(rows, block, third, input_precision="ieee")
            rows = _inputs_of(x, row + 48, at, num, stop, row_stride, EVEN)
            fourth = tl.dot(rows, block, fourth, input_precision="ieee")
    _write(
        first, parts, bias, residual, out, row, output, num, outputs, residual_stride, out_stride, multiplier, SPLIT,
        BIASED, ADDS,
    )  # fmt: skip
    if BLOCKS > 1:
        _write(
            second, parts, bias, residual, out, row + 16, output, num, outputs, residual_stride, out_stride, multiplier,
            SPLIT, BIASED, ADDS,
        )  # fmt: skip
    if BLOCKS > 2:
        _write(
            third, parts, bias, residual, out, row + 32, output, num, outputs, residual_stride, out_stride, multiplier,
            SPLIT, BIASED, ADDS,
        )  # fmt: skip
        _write(
            fourth, parts, bias, residual, out, row + 48, output, num, outputs, residual_stride, out_stride, multiplier,
            SPLIT, BIASED, ADDS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num"])  # type: ignore[untyped-decorator]
def _add_parts(
    parts: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor, num: tl.tensor, outputs: tl.tensor,
    splits: tl.tensor, residual_stride: tl.tensor, out_stride: tl.tensor, multiplier: tl.tensor, BLOCK: tl.constexpr,
    BIASED: tl.constexpr, ADDS: tl.constexpr,
) -> None:  # fmt: skip
    """Add the parts of one row, from the first split to the last."""
    row = tl.program_id(1) + tl.arange(0, 1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([1, BLOCK], tl.float32)
    for split in range(splits):
        places = parts + (tl.cast(split, tl.int64) * num + row[:, None]) * outputs + at[None, :]
        total += tl.load(places, mask=(at < outputs)[None, :], other=0.0)
    _finish(total, bias, residual, out, row, at, num, outputs, residual_stride, out_stride, multiplier, BIASED, ADDS)


def stages_of(tiling: Tiling, blocks: int, itemsize: int) -> int:
    """How many blocks of weight and rows are on their way at once: no sum depends on it."""
    return max(1, min(MOST_STAGES, SHARED // ((tiling.out_block + ROWS * blocks) * tiling.in_block * itemsize)))


def row_blocks(num: int) -> int:
    """Blocks of rows in a program: 1, 2 or 4."""
    return 1 if num <= ROWS else 2 if num <= 2 * ROWS else MOST_BLOCKS


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, multiplier: float = 1.0,
    tiling: Tiling | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`reference.product` by a tiling, by default that of the weight's shape. `out` may be the residual itself."""
    (num, inputs), outputs = x.shape, weight.shape[0]
    tiling = tiling or default_tiling(weight)
    result = x.new_empty(num, outputs) if out is None else out
    if num == 0:
        return result
    x = x if x.stride(1) == 1 else x.contiguous()
    given = [each for each in (residual, result) if each is not None]
    assert all(each.stride(1) == 1 for each in (weight, *given) if each.shape[1] > 1)
    steps = -(-inputs // tiling.in_block)
    each = -(-steps // tiling.splits) * tiling.in_block
    split, blocks = tiling.splits > 1, row_blocks(num)
    parts = torch.empty(tiling.splits, num, outputs, dtype=torch.float32, device=x.device) if split else result
    strides = (result.stride(0) if residual is None else residual.stride(0), result.stride(0))
    flags = {"BIASED": bias is not None, "ADDS": residual is not None}
    ends = (result if bias is None else bias, result if residual is None else residual, result)
    with on_device(x):
        _multiply[(triton.cdiv(outputs, tiling.out_block), tiling.splits, triton.cdiv(num, ROWS * blocks))](
            x, weight, parts, *ends, num, outputs, inputs, each, x.stride(0), weight.stride(0), *strides, multiplier,
            OUT_BLOCK=tiling.out_block, IN_BLOCK=tiling.in_block, BLOCKS=blocks,
            EVEN=inputs % tiling.in_block == 0 and outputs % tiling.out_block == 0, SPLIT=split, **flags,
            num_warps=tiling.warps, num_stages=stages_of(tiling, blocks, x.itemsize),
        )  # fmt: skip
        if split:
            _add_parts[(triton.cdiv(outputs, ADD_BLOCK), num)](
                parts, *ends, num, outputs, tiling.splits, *strides, multiplier, BLOCK=ADD_BLOCK, **flags
            )
    return result
