"""Attention split over the keys: a Triton kernel for the parts, and one that adds them up. Imports Triton.

Slots are cut into splits at places that do not depend on how many slots are in use: `EACH` splits of `FIRST` slots,
then `EACH` of twice as many, and so on (`boundaries`). A program of the first kernel computes one split for a few
tokens and the heads that share a key. Within a split, and from split to split, a row's sums run in one order, whatever
the number of tokens and the bucket: slots that a row does not attend to add exact zeros, and splits without any are not
read. Slots after a program's last token are not read.

With an index, splits are of positions, and a token reads each position in the slot that its index names. It has a
program of its own then, of the same shape, so that its sums are those of a chain with the same keys in the same order.

Shapes: T tokens, H heads, K key-value heads, G = H / K, d head size, C slots, S splits.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from specexp.lm.kernels.launch import LEAST_DOT, block_of, on_device

FIRST, EACH = 64, 32  # slots of the first splits, and how many splits there are of each length
MOST_TOKENS = 64  # of one launch: the parts of more would not fit in a GPU's second-level cache
WIDE = 1024  # bytes of a head, padded: from here on blocks have half as many slots, which shared memory holds


def boundaries(bucket: int) -> list[int]:
    """Where splits that cover `bucket` slots begin, and the end of the last one."""
    starts, size = [0], FIRST
    while starts[-1] < bucket:
        starts.append(starts[-1] + size)
        size = size if (len(starts) - 1) % EACH else 2 * size
    return starts


@lru_cache
def _on(device: torch.device, bucket: int) -> Tensor:
    """The boundaries [S + 1] on a device, copied there once: a recording can copy nothing from the host."""
    return torch.tensor(boundaries(bucket), dtype=torch.int32).to(device)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_split(
    queries: tl.tensor, flat: tl.tensor, slots: tl.tensor, seen: tl.tensor, bounds: tl.tensor, parts: tl.tensor,
    sums: tl.tensor, index: tl.tensor, num: tl.tensor, splits: tl.tensor, window: tl.tensor, query_stride: tl.tensor,
    slot_stride: tl.tensor, seen_stride: tl.tensor, index_stride: tl.tensor, scale: tl.tensor, softcap: tl.tensor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, INDEXED: tl.constexpr,
) -> None:  # fmt: skip
    """Write parts[T, H, S, d] and, of each, the largest score and the sum of exponentials to sums[T, H, S, 2]."""
    split, key_head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    tokens: tl.constexpr = 1 if INDEXED else ROWS // group
    row, within = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    token = tl.program_id(2) * tokens + row // group
    used = (row < tokens * group) & (token < num)
    head = key_head * group + row % group
    at = tl.load(slots + token, mask=used, other=-1).to(tl.int32)
    start = tl.load(bounds + split)
    stop = tl.minimum(tl.load(bounds + split + 1), tl.max(at, 0) + 1)
    if WINDOWED:  # leave out the blocks before every token's window
        first = tl.min(tl.where(used, at, 2147483647), 0) - window + 1
        start = start + tl.maximum(first - start, 0) // BLOCK * BLOCK
    if start < stop:
        real = within < SIZE
        asked = tl.load(
            queries + token[:, None].to(tl.int64) * query_stride + head[:, None] * SIZE + within[None, :],
            mask=used[:, None] & real[None, :], other=0.0,
        )  # fmt: skip
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.full([ROWS], 0.0, tl.float32)
        result = tl.full([ROWS, WIDTH], 0.0, tl.float32)
        for begin in range(start, stop, BLOCK):
            slot = begin + tl.arange(0, BLOCK)
            place = slot
            if INDEXED:
                own = index + tl.program_id(2).to(tl.int64) * index_stride
                place = tl.load(own + slot, mask=slot < stop, other=0)
            here = flat + place[:, None].to(tl.int64) * slot_stride + key_head * SIZE + within[None, :]
            read = (slot < stop)[:, None] & real[None, :]
            keys = tl.load(here, mask=read, other=0.0)
            scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
            if CAPPED:  # c tanh(s / c), by a power that does not overflow
                power = tl.exp(-2 * tl.abs(scores) / softcap)
                scores = tl.where(scores < 0, -softcap, softcap) * (1 - power) / (1 + power)
            visible = used[:, None] & (slot[None, :] <= at[:, None])
            if WINDOWED:
                visible = visible & (slot[None, :] > at[:, None] - window)
            if MASKED:
                given = seen + token[:, None].to(tl.int64) * seen_stride + slot[None, :]
                visible = visible & (tl.load(given, mask=visible, other=0) != 0)
            scores = tl.where(visible, scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
            weights = tl.exp(scores - base[:, None])
            kept = tl.exp(peak - base)
            total = total * kept + tl.sum(weights, 1)
            values = tl.load(here + KV_HEADS * SIZE, mask=read, other=0.0)
            added = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            result = result * kept[:, None] + added
            peak = higher
        part = (token.to(tl.int64) * HEADS + head) * splits + split
        tl.store(parts + part[:, None] * SIZE + within[None, :], result, mask=used[:, None] & real[None, :])
        tl.store(sums + 2 * part, peak, mask=used)
        tl.store(sums + 2 * part + 1, total, mask=used)


@triton.jit  # type: ignore[untyped-decorator]
def _add_splits(
    parts: tl.tensor, sums: tl.tensor, slots: tl.tensor, bounds: tl.tensor, sinks: tl.tensor, out: tl.tensor,
    splits: tl.tensor, window: tl.tensor, HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    EACH: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr,
) -> None:  # fmt: skip
    """Add the parts of one token and head, `EACH` splits at a time."""
    token, head = tl.program_id(0), tl.program_id(1)
    at = tl.load(slots + token).to(tl.int32)
    within, each = tl.arange(0, WIDTH), tl.arange(0, EACH)
    real = within < SIZE
    place = (token.to(tl.int64) * HEADS + head) * splits
    peak = tl.full([1], float("-inf"), tl.float32)
    total = tl.full([1], 0.0, tl.float32)
    result = tl.full([WIDTH], 0.0, tl.float32)
    for begin in range(0, splits, EACH):
        split = begin + each
        written = tl.load(bounds + split, mask=split < splits, other=2147483647) <= at
        if WINDOWED:
            written = written & (tl.load(bounds + split + 1, mask=written, other=0) > at - window + 1)
        peaks = tl.load(sums + 2 * (place + split), mask=written, other=float("-inf"))
        totals = tl.load(sums + 2 * (place + split) + 1, mask=written, other=0.0)
        values = tl.load(
            parts + (place + split)[:, None] * SIZE + within[None, :], mask=written[:, None] & real[None, :], other=0.0
        )
        higher = tl.maximum(peak, tl.max(peaks, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights, kept = tl.exp(peaks - base), tl.exp(peak - base)
        total = total * kept + tl.sum(totals * weights, 0)
        result = result * kept + tl.sum(values * weights[:, None], 0)
        peak = higher
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        higher = tl.maximum(peak, sink)
        kept = tl.exp(peak - higher)
        total = total * kept + tl.exp(sink - higher)
        result = result * kept
    result = result / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (token * HEADS + head) * SIZE + within, result.to(out.dtype.element_ty), mask=real)


def attend(
    queries: Tensor, flat: Tensor, kv_heads: int, slots: Tensor, window: int, seen: Tensor | None, bucket: int,
    scale: float, softcap: float, sinks: Tensor | None, index: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`reference.attend`, with float32 sums; a token that attends to nothing gets zeros."""
    num, heads, size = queries.shape
    assert queries.stride(2) == flat.stride(1) == 1 and queries.stride(1) == size  # noqa: PT018
    assert index is None or (seen is None and index.stride(1) == 1)
    out = queries.new_empty(num, heads * size)
    bounds, group, width = _on(queries.device, bucket), heads // kv_heads, block_of(size, LEAST_DOT)
    rows, splits = block_of(group, LEAST_DOT), bounds.shape[0] - 1
    windowed = seen is None and window > 0
    most = min(num, MOST_TOKENS)
    parts = torch.empty(most, heads, splits, size, dtype=torch.float32, device=queries.device)
    sums = torch.empty(most, heads, splits, 2, dtype=torch.float32, device=queries.device)
    with on_device(queries):
        for start in range(0, num, MOST_TOKENS):
            count = min(MOST_TOKENS, num - start)
            here = slots[start : start + count]
            mask = flat if seen is None else seen[start : start + count].view(torch.uint8)
            read = slots if index is None else index[start : start + count]
            _attend_split[(splits, kv_heads, count if index is not None else triton.cdiv(count, rows // group))](
                queries[start : start + count], flat, here, mask, bounds, parts, sums, read, count, splits, window,
                queries.stride(0), flat.stride(0), mask.stride(0), read.stride(0), scale, softcap, HEADS=heads,
                KV_HEADS=kv_heads, SIZE=size, ROWS=rows, BLOCK=FIRST // 2 if width * flat.itemsize >= WIDE else FIRST,
                WIDTH=width, MASKED=seen is not None, WINDOWED=windowed, CAPPED=softcap > 0, INDEXED=index is not None,
                num_stages=2,
            )  # fmt: skip
            _add_splits[(count, heads)](
                parts, sums, here, bounds, flat if sinks is None else sinks, out[start : start + count], splits, window,
                HEADS=heads, SIZE=size, WIDTH=width, EACH=EACH, WINDOWED=windowed, SINKS=sinks is not None,
            )  # fmt: skip
    return out
