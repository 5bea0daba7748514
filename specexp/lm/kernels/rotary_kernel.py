"""Rotation of queries and keys, with the write of keys and values, as one Triton kernel. Imports Triton.

A program holds some heads of one token. It reads and writes the values of a pair at the same place of its block: no
thread reads what another has already rotated.

Shapes: T tokens, H heads, K key-value heads, d head size, R rotated values per head, C slots.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from specexp.lm.kernels.launch import block_of, on_device
from specexp.lm.kernels.reference import Table

VALUES = 1024  # of a program, about


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_and_store(
    projected: tl.tensor, cos: tl.tensor, sin: tl.tensor, flat: tl.tensor, slots: tl.tensor, row_stride: tl.tensor,
    slot_stride: tl.tensor, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, PAIRS: tl.constexpr,
    ADJACENT: tl.constexpr, STORES: tl.constexpr, HEAD_BLOCK: tl.constexpr, PAIR_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEAD_BLOCK + tl.arange(0, HEAD_BLOCK)[:, None]
    source = projected + token * row_stride + head * SIZE
    if STORES:
        stored = flat + tl.load(slots + token) * slot_stride + (head - HEADS) * SIZE
    if PAIRS > 0:
        pair = tl.arange(0, PAIR_BLOCK)[None, :]
        one = 2 * pair if ADJACENT else pair
        other = 2 * pair + 1 if ADJACENT else pair + PAIRS
        inside = (pair < PAIRS) & (head < HEADS + (KV_HEADS if STORES else 0))
        x = tl.load(source + one, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(source + other, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(cos + token * 2 * PAIRS + one, mask=pair < PAIRS, other=0.0).to(tl.float32)
        s = tl.load(sin + token * 2 * PAIRS + other, mask=pair < PAIRS, other=0.0).to(tl.float32)
        kind = projected.dtype.element_ty
        first, second = (x * c - y * s).to(kind), (y * c + x * s).to(kind)
        queries = inside & (head < HEADS)
        tl.store(source + one, first, mask=queries)
        tl.store(source + other, second, mask=queries)
        if STORES:
            keys = inside & (head >= HEADS)
            tl.store(stored + one, first, mask=keys)
            tl.store(stored + other, second, mask=keys)
    if STORES:
        at = tl.arange(0, BLOCK)[None, :]
        turned = tl.where(head < HEADS + KV_HEADS, 2 * PAIRS, 0)
        copied = (at < SIZE) & (at >= turned) & (head >= HEADS) & (head < HEADS + 2 * KV_HEADS)
        tl.store(stored + at, tl.load(source + at, mask=copied, other=0.0), mask=copied)


def rotate_and_store(
    projected: Tensor, table: Table | None, heads: int, kv_heads: int, flat: Tensor | None, slots: Tensor
) -> None:
    """`reference.rotate_and_store`: queries are rotated in place, keys where they are stored."""
    num, stored = projected.shape[0], flat is not None
    all_heads = heads + 2 * kv_heads if stored else heads
    size = projected.shape[1] // all_heads
    cos, sin, axis = table if table is not None else (projected, projected, 0)
    pairs = 0 if table is None else cos.shape[2] * cos.shape[3] // 2
    assert table is None or (cos.is_contiguous() and sin.is_contiguous())
    block = block_of(size)
    head_block = min(max(1, VALUES // block), block_of(all_heads))
    with on_device(projected):
        _rotate_and_store[(num, triton.cdiv(all_heads, head_block))](
            projected, cos, sin, projected if flat is None else flat, slots, projected.stride(0),
            0 if flat is None else flat.stride(0), HEADS=heads, KV_HEADS=kv_heads, SIZE=size, PAIRS=pairs,
            ADJACENT=axis == 3, STORES=stored, HEAD_BLOCK=head_block, PAIR_BLOCK=block_of(max(pairs, 1)), BLOCK=block,
        )  # fmt: skip
