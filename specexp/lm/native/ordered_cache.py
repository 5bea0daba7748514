"""The cache of an invariant forward: each token reads its keys in the order of positions, whatever slots they are in.

Where the stack is computed by PyTorch's operations, it is computed in tiles of TILE tokens, padded with copies of the
tile's first one: all products, norms and activations then have one shape, and one order of sums. Tiles follow each
other, so that a token attends to those of earlier tiles.

Shapes: T tokens, C slots, P positions, N tokens of one row, D hidden, H heads, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specexp.lm.blocks.block import Block
from specexp.lm.blocks.rotary import Angles
from specexp.lm.kernels.ordered_attention import attend_in_order, slots_by_position
from specexp.lm.kernels.table import Kernels
from specexp.lm.model import Branches, Feed
from specexp.lm.native.attention import tree_attention
from specexp.lm.transfer import integers, to_device

if TYPE_CHECKING:
    from specexp.lm.native.kv_cache import Pool

TILE = 16  # tokens


@dataclass(frozen=True, slots=True, eq=False)
class OrderedCache:
    """The `Cache` of tokens in slots[T] at positions[T], which read position p in slot index[T, P]; without an index
    they read it in slot p.

    flat[layer][C, 2 K d] has keys and values, states[layers kept, C, D] kept states or nothing. In a tile only the
    first `num` of the tokens are real.
    """

    kernels: Kernels
    flat: Sequence[Tensor]
    states: Tensor | None
    slots: Tensor
    positions: Tensor
    index: Tensor | None
    stop: int  # P
    num: int

    @property
    def rotate_and_store(self) -> Callable[[Block, Tensor, Angles], None] | None:
        return self._rotate_and_store if self.kernels.attends else None

    def _rotate_and_store(self, block: Block, projected: Tensor, angles: Angles) -> None:
        spec, num, table = block.spec, self.num, None
        assert self.kernels.rotate_and_store is not None
        if spec.rotary is not None:
            cos, sin, axis = angles.tables[spec.rotary]
            table = cos[:num], sin[:num], axis
        flat = self.flat[spec.store] if spec.stores else None
        self.kernels.rotate_and_store(projected[:num], table, spec.heads, spec.kv_heads, flat, self.slots)

    def attend(self, block: Block, queries: Tensor, fresh: Tensor | None) -> Tensor:
        spec, flat, num = block.spec, self.flat[block.spec.store], self.num
        if fresh is not None:
            flat.index_copy_(0, self.slots, fresh[:num])
        kv_heads = flat.shape[1] // (2 * spec.head_dim)
        rest = spec.score_multiplier, spec.score_softcap, block.sinks
        if self.kernels.attends and self.kernels.attend is not None:
            result = self.kernels.attend(
                queries[:num], flat, kv_heads, self.positions, spec.window, None, self.stop, *rest, self.index
            )
        else:
            index = self.index
            if index is None:
                index = torch.arange(self.stop, device=flat.device).expand(num, -1)
            result = attend_in_order(queries[:num], flat, kv_heads, self.positions, index, spec.window, *rest)
        return _padded(result, queries.shape[0])

    def keep(self, states: Tensor, index: int) -> None:
        assert self.states is not None
        self.states[index].index_copy_(0, self.slots, states[: self.num])

    def tile(self, start: int, stop: int) -> OrderedCache:
        """The cache of tokens start .. stop - 1 of these."""
        some = slice(start, stop)
        index = None if self.index is None else self.index[some]
        return replace(
            self, slots=self.slots[some], positions=self.positions[some], index=index, num=stop - start
        )  # fmt: skip


def by_tiles(
    stack: Callable[[Tensor, Angles, OrderedCache], Tensor], tokens: Tensor, angles: Angles, cache: OrderedCache
) -> Tensor:
    """Final hidden states [T, D] of tokens[T] by forwards of TILE tokens each."""
    parts = []
    for start in range(0, tokens.shape[0], TILE):
        stop = min(start + TILE, tokens.shape[0])
        states = stack(_padded(tokens[start:stop], TILE), _padded_angles(angles, start, stop), cache.tile(start, stop))
        parts.append(states[: stop - start])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rows_by_tiles(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of x[T, D], TILE rows at a time."""
    pieces = torch.split(x, TILE)
    parts = [function(_padded(piece, TILE))[: piece.shape[0]] for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def row_cache(pool: Pool, row: int, start: int, num: int, branches: Branches | None) -> OrderedCache:
    """The cache of `num` tokens that a row is fed from slot `start` on."""
    buffers, place = pool.buffers, pool.forward.device
    slots, index = torch.arange(start, start + num, device=place), None
    positions = slots
    if branches is not None:
        sees, at = tree_attention(start, num, branches)
        index = to_device(slots_by_position(sees, at), place)
        positions = to_device(at[start:].contiguous(), place)
    states = None if buffers.states is None else buffers.states[:, row]
    return OrderedCache(
        pool.forward.kernels, buffers.flat[row], states, slots, positions, index, start + num, num
    )  # fmt: skip


class OrderedBatch:
    """The cache of several rows that are fed together, as one row in which each token has an index of its own.

    It has what `BatchAttention` has for `Pool.feed_together`.
    """

    def __init__(self, pool: Pool, feeds: Sequence[tuple[int, Feed]]) -> None:
        forward, place = pool.forward, pool.forward.device
        ends = [pool.lengths[row] + feed.tokens.shape[0] for row, feed in feeds]
        stop = max(ends)
        pool.buffers.ensure_capacity(stop)
        capacity, buffers = pool.capacity, pool.buffers
        slots, positions, indices = [], [], []
        wanted: list[int] = []
        for (row, feed), end in zip(feeds, ends, strict=True):
            num = feed.tokens.shape[0]
            own = row_cache(pool, row, end - num, num, feed.branches)
            index = own.index
            if index is None:
                index = torch.arange(stop, device=place).expand(num, -1)
            else:
                index = torch.cat([index, index.new_zeros(num, stop - end)], 1)
            slots.append(own.slots + row * capacity)
            positions.append(own.positions)
            indices.append(index + row * capacity)
            fed = sum(map(len, slots))
            wanted += range(fed - feed.rows, fed)
        self.tokens, self._wanted = torch.cat([feed.tokens for _, feed in feeds]), integers(wanted, place)
        stored = [block.spec for block in forward.blocks if block.spec.stores]
        flat = [buffers.values[spec.store].flatten(0, 1)[:, : spec.kv_width] for spec in stored]
        states = None if buffers.states is None else buffers.states.flatten(1, 2)
        at = torch.cat(positions)
        self.cache = OrderedCache(
            forward.kernels, flat, states, torch.cat(slots), at, torch.cat(indices), stop, at.shape[0]
        )  # fmt: skip
        self.angles = forward.angles(stop).take(at)

    def scored(self, x: Tensor) -> Tensor:
        """Of the states x[T, D] of all tokens, those that logits are wanted of."""
        return x.index_select(0, self._wanted)


def _padded(x: Tensor, num: int) -> Tensor:
    """x[T, ...] with copies of its first row up to `num`."""
    return x if x.shape[0] == num else torch.cat([x, x[:1].expand(num - x.shape[0], *x.shape[1:])])


def _padded_angles(angles: Angles, start: int, stop: int) -> Angles:
    part = angles.at(start, stop)
    scales = None if part.scales is None else _padded(part.scales, TILE)
    return Angles([(_padded(cos, TILE), _padded(sin, TILE), axis) for cos, sin, axis in part.tables], scales)
