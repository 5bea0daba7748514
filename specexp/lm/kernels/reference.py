"""The parts of a block that have kernels, as PyTorch operations: what runs where there is no kernel, and what kernels
are checked against.

Shapes: T tokens, D normalised values, I intermediate values, H heads, K key-value heads, d head size, C slots, N slots
of a bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

# Cosines and signed sines, each [T, 1, 2, R / 2] or [T, 1, R / 2, 2], and the axis of length 2, on which pairs lie.
Table = tuple[Tensor, Tensor, int]
MANY_TOKENS = 8

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension of x[T, D], or of x[T, H, D] with a weight of [D] or,
    one row for each head, [H, D].

    In float32 inside. A weight of float32 for a narrower x is multiplied before the result is rounded, and so is a
    weight of one row; weights of single heads are multiplied after, as transformers' norms do.
    """
    result = functional.rms_norm(x.float(), x.shape[-1:], None, eps)
    if weight is None:
        return result.to(x.dtype)
    if weight.dim() == 2 and weight.dtype == x.dtype:
        return result.to(x.dtype) * weight
    return (result * weight).to(x.dtype)


def gated(inner: Tensor, act: str) -> Tensor:
    """act(gate) * up of inner[T, 2 I], gate and up side by side: [T, I]. `act` is a key of `ACTIVATIONS`."""
    half = inner.shape[1] // 2
    return ACTIVATIONS[act](inner[:, :half]).mul_(inner[:, half:])


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, multiplier: float = 1.0,
    _tiling: object = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(x W^T + b) * multiplier + residual: [T, out] of x[T, in], weight[out, in], bias[out] and residual[T, out], in
    `out` if it is given."""
    result = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    result = result if multiplier == 1 else result.mul_(multiplier)
    result = result if residual is None else result.add_(residual)
    return result if out is None else out.copy_(result)


def rotate(heads: Tensor, table: Table) -> None:
    """Rotate the first R values of heads[T, H, d], in place."""
    cos, sin, axis = table
    num, count, size = heads.shape
    _, _, first, second = cos.shape
    part = heads if first * second == size else heads[:, :, : first * second]
    part = part.view(num, count, first, second)
    # The same values: `flip` takes less time for few tokens, and more for many.
    swapped = part.flip(axis) if num < MANY_TOKENS else part.roll(1, axis)
    if cos.dtype == part.dtype:
        torch.addcmul(part * cos, swapped, sin, out=part)
    else:  # some models keep the angles of bfloat16 weights in float32
        part.copy_(torch.addcmul(part * cos, swapped, sin))


def rotate_and_store(
    projected: Tensor, table: Table | None, heads: int, kv_heads: int, flat: Tensor | None, slots: Tensor
) -> None:
    """Rotate queries and keys of projected[T, (H + 2 K) d], and write keys and values to flat[C, 2 K d] at slots[T].

    The queries are rotated in place; the keys of `projected` are undefined afterwards. Without a `table` nothing is
    rotated; without `flat`, `projected` has queries alone. Slots differ from each other.
    """
    turned = heads if flat is None else heads + kv_heads
    size = projected.shape[1] // (heads if flat is None else heads + 2 * kv_heads)
    if table is not None:
        rotate(projected[:, : turned * size].view(-1, turned, size), table)
    if flat is not None:
        flat.index_copy_(0, slots, projected[:, heads * size :])


def masked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention [R, K, T G, d] of queries[R, K, T G, d], grouped by the key that G heads share, under an additive mask.

    What torch's fused attention lacks, a cap on the scores and sinks[K G], is computed step by step.
    """
    if not softcap and sinks is None:
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    scores = torch.matmul(queries, keys.transpose(2, 3)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        return torch.matmul(torch.softmax(scores, -1, torch.float32).to(values.dtype), values)
    rows, kv_heads, num = scores.shape[:3]
    by_key = sinks.view(1, kv_heads, 1, -1)
    each = by_key.expand(rows, -1, num // by_key.shape[3], -1).reshape(rows, kv_heads, num, 1)
    scores = torch.cat([scores, each], -1)
    return torch.matmul(torch.softmax(scores, -1, torch.float32)[..., :-1].to(values.dtype), values)


def attend(
    queries: Tensor, flat: Tensor, kv_heads: int, slots: Tensor, window: int, seen: Tensor | None, bucket: int,
    scale: float, softcap: float, sinks: Tensor | None, index: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention [T, H d] of queries[T, H, d] in slots[T], over the first N = `bucket` rows of flat[C, 2 K d].

    With an index[T, N], `slots` are positions, and a token reads position p in row index[., p]; there is no seen then.

    A token attends to the slots up to its own, of those to the last `window` (0: all); or, if there is seen[T, N], to
    those where it is True, none of them after its own slot. sinks[H] are additional scores, whose value is 0.
    """
    num, heads, size = queries.shape
    group = heads // kv_heads
    if seen is None:
        columns = torch.arange(bucket, device=queries.device)
        seen = columns <= slots[:, None]
        if window:
            seen = seen & (columns > slots[:, None] - window)
    mask = torch.zeros(seen.shape, dtype=queries.dtype, device=queries.device).masked_fill_(~seen, float("-inf"))
    if index is not None:
        read = flat.index_select(0, index.reshape(-1)).view(num, bucket, 2, kv_heads, size).permute(2, 0, 3, 1, 4)
        each = mask[:, None, None].expand(-1, kv_heads, group, -1)
        own = queries.reshape(num, kv_heads, group, size)
        return masked_attention(own, read[0], read[1], each, scale, softcap, sinks).reshape(num, -1)
    both = flat[:bucket].view(1, bucket, 2, kv_heads, size).transpose(1, 3)
    asked = queries.reshape(num, kv_heads, group, size).transpose(0, 1).reshape(1, kv_heads, num * group, size)
    result = masked_attention(
        asked, both[:, :, 0], both[:, :, 1], mask.repeat_interleave(group, dim=0), scale, softcap, sinks
    )
    return result.view(kv_heads, num, group, size).transpose(0, 1).reshape(num, -1)
