"""Attention whose sums run in the order of positions, by PyTorch operations: what an invariant forward uses where it
has no kernel for it.

A query's keys are read through its own index from positions to slots, in blocks of BLOCK positions that begin at
multiples of BLOCK. Every product is of one query's heads and one block, whatever else is fed, and blocks are added one
after another. Positions after the query's own have weight zero, and blocks of them add exact zeros. So the bits of a
result depend on the query and on its keys in their order alone: not on their slots, on other queries, or on how many
positions the index has.

Shapes: T queries, H heads, K key-value heads, G = H / K, d head size, C slots, P positions, B blocks of S = BLOCK.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64


def slots_by_position(seen: Tensor, at: Tensor) -> Tensor:
    """Which slot each token reads at each position, [N, C], from the slots that it attends to, seen[N, C], and the
    positions at[C] of all slots. Where it attends to none it is slot 0, which is the first of every sequence."""
    num, slots = seen.shape
    columns = torch.arange(slots, device=seen.device)
    # What is not seen goes to an additional position, which is cut off.
    places = torch.where(seen, at, slots)
    result = columns.new_zeros(num, slots + 1)
    return result.scatter_(1, places, columns.expand(num, -1))[:, :slots]


def attend_in_order(
    queries: Tensor, flat: Tensor, kv_heads: int, positions: Tensor, index: Tensor, window: int, scale: float,
    softcap: float, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention [T, H d] of queries[T, H, d] at positions[T] to the rows index[T, P] of flat[C, 2 K d], in float32.

    A query attends to the positions up to its own, of those to the last `window` (0: all). sinks[H] are additional
    scores, whose value is 0.
    """
    num, heads, size = queries.shape
    group, blocks = heads // kv_heads, -(-index.shape[1] // BLOCK)
    # A whole last block: the first slot fills it, which holds finite values, and has weight zero there.
    missing = blocks * BLOCK - index.shape[1]
    slots = torch.cat([index, index[:, :1].expand(-1, missing)], 1) if missing else index
    read = flat.index_select(0, slots.reshape(-1)).view(num, blocks, BLOCK, 2, kv_heads, size)
    keys, values = read.permute(3, 0, 4, 1, 2, 5).to(torch.float32, memory_format=torch.contiguous_format)
    asked = queries.reshape(num, kv_heads, 1, group, size).float().expand(-1, -1, blocks, -1, -1)
    scores = torch.bmm(
        asked.reshape(-1, group, size), keys.reshape(-1, BLOCK, size).transpose(1, 2)
    ).mul_(scale)  # fmt: skip
    if softcap:
        scores = torch.tanh(scores / softcap).mul_(softcap)
    columns = torch.arange(blocks * BLOCK, device=flat.device)
    seen = columns <= positions[:, None]
    if window:
        seen = seen & (columns > positions[:, None] - window)
    scores = scores.view(num, kv_heads, blocks, group, BLOCK)
    scores = scores.masked_fill_(~seen.view(num, 1, blocks, 1, BLOCK), float("-inf"))
    peak = scores.amax((2, 4), keepdim=True)  # exact in any order
    if sinks is not None:
        each = sinks.float().view(1, kv_heads, 1, group, 1)
        peak = torch.maximum(peak, each)
    weights = torch.exp(scores.sub_(peak))
    parts = torch.bmm(weights.view(-1, group, BLOCK), values.reshape(-1, BLOCK, size))
    parts, sums = parts.view(num, kv_heads, blocks, group, size), weights.sum(-1)
    result, total = parts[:, :, 0].clone(), sums[:, :, 0].clone()
    for block in range(1, blocks):
        result += parts[:, :, block]
        total += sums[:, :, block]
    if sinks is not None:
        total += torch.exp(each - peak)[:, :, 0, :, 0]
    return (result / total[..., None]).to(queries.dtype).reshape(num, heads * size)
