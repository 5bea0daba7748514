"""Attention over a pool of keys and values, for one row or several: the masks and the attention itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specexp.lm.blocks.block import Block
from specexp.lm.kernels.reference import masked_attention
from specexp.lm.model import Branches, Feed
from specexp.lm.transfer import integers, to_device

if TYPE_CHECKING:
    from specexp.lm.native.kv_cache import Pool


def tree_attention(start: int, num: int, branches: Branches) -> tuple[Tensor, Tensor]:
    """The boolean mask [num, start + num] of the tokens in slots start .. start + num - 1, and every slot's position,
    both on the host, where the tree is."""
    base, stop = branches.base, start + num
    at = torch.arange(stop)
    at[base:] = base + torch.tensor(branches.depths[: stop - base])
    sees = torch.arange(stop)[None, :] <= torch.arange(start, stop)[:, None]
    first = max(start, base)
    sees[first - start :, base:] = False
    rows, columns = [], []
    for slot in range(first, stop):
        ancestors = branches.ancestors[slot - base]
        rows += [slot - start] * len(ancestors)
        columns += [base + a for a in ancestors]
    sees[rows, columns] = True
    return sees, at


def window_mask(sees: Tensor, at: Tensor, window: int) -> Tensor:
    """Restrict `sees`[N, stop] to a sliding window, by the positions `at`[stop] of all slots; window 0: no change."""
    positions = at[at.shape[0] - sees.shape[0] :]
    return sees & (at[None, :] > positions[:, None] - window) if window else sees


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive attention mask from a boolean one: 0 where True, minus infinity where False."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, float("-inf"))


def grouped(block: Block, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries[N, H, d] to keys and values [1, K, S, d] under mask[N H / K, S]: [N, H d].

    The heads that share a key become adjacent query rows, so that no key is repeated.
    """
    num, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    if num == 1:
        return attention(block, queries.view(1, kv_heads, group, head_dim), keys, values, mask).reshape(1, -1)
    asked = queries.view(num, kv_heads, group, -1).transpose(0, 1).reshape(1, kv_heads, num * group, -1)
    result = attention(block, asked, keys, values, mask)
    return result.view(kv_heads, num, group, -1).transpose(0, 1).reshape(num, -1)


def attention(block: Block, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [R, K, N G, d] of R rows whose queries[R, K, N G, d] are grouped by the key that G heads share."""
    spec = block.spec
    return masked_attention(queries, keys, values, mask, spec.score_multiplier, spec.score_softcap, block.sinks)


def attention_of_rows(block: Block, queries: Tensor, kv: Tensor, mask: Tensor, num: int) -> Tensor:
    """Attention [R N, H d] of queries[R N, H, d], `num` = N of each row, to its keys and values kv[R, S, 2 K d], under
    an additive mask[R, 1, N H / K, S]."""
    spec, (count, slots, _) = block.spec, kv.shape
    both = kv.view(count, slots, 2, spec.kv_heads, spec.head_dim).permute(2, 0, 3, 1, 4)
    # The heads that share a key become adjacent rows.
    asked = queries.view(count, num, -1, spec.group, queries.shape[2]).transpose(1, 2)
    asked = asked.reshape(count, -1, num * spec.group, queries.shape[2])
    result = attention(block, asked, both[0], both[1], mask)
    result = result.view(count, spec.kv_heads, num, spec.group, spec.head_dim).transpose(1, 2)
    return result.reshape(count * num, -1)


class SingleRowAttention:
    """Attention of one row, whose keys and values are a slice of the pool."""

    rotate_and_store = None

    def __init__(self, pool: Pool, row: int, start: int, num: int, tree: tuple[Tensor, Tensor] | None = None) -> None:
        forward = pool.forward
        self.flat, self.split = pool.buffers.flat[row], pool.buffers.split[row]
        self.pool, self.row = pool, row
        self.start, self.num, self.stop = start, num, start + num
        self.masks: dict[tuple[int, int], Tensor | None] = {}
        for window, group in forward.masks:
            mask = None
            if tree is not None:
                mask = additive(to_device(window_mask(*tree, window), forward.device), forward.dtype)
                mask = mask.repeat_interleave(group, dim=0)
            elif num > 1 or (window and self.stop > window):
                mask = pool.buffers.causal_mask(num, start, window, group)
            self.masks[window, group] = mask

    def attend(self, block: Block, queries: Tensor, fresh: Tensor | None) -> Tensor:
        store = block.spec.store
        if fresh is not None:
            self.flat[store].narrow(0, self.start, self.num).copy_(fresh)
        keys, values = self.split[store]
        mask = self.masks[block.spec.mask]
        return grouped(block, queries, keys.narrow(2, 0, self.stop), values.narrow(2, 0, self.stop), mask)

    def keep(self, states: Tensor, index: int) -> None:
        kept = self.pool.buffers.states
        assert kept is not None
        kept[index, self.row].narrow(0, self.start, self.num).copy_(states)


class BatchAttention:
    """Attention of several rows. Only attention pads them, to the longest; all other layers get the bare tokens.

    Shapes: R rows that are fed, N tokens of the longest row, T tokens of all rows.
    """

    rotate_and_store = None

    def __init__(self, pool: Pool, feeds: Sequence[tuple[int, Feed]]) -> None:
        forward, self.pool = pool.forward, pool
        place = forward.device
        used = [row for row, _ in feeds]
        starts = [pool.lengths[row] for row in used]
        sizes = [feed.tokens.shape[0] for _, feed in feeds]
        self.count, self.num = len(used), max(sizes)
        self.stop = max(start + size for start, size in zip(starts, sizes, strict=True))
        pool.buffers.ensure_capacity(self.stop)
        fed: list[int] = []  # indices of the tokens in the padded rows
        wanted: list[int] = []
        for i, (_, feed) in enumerate(feeds):
            fed += range(i * self.num, i * self.num + sizes[i])
            wanted += range(len(fed) - feed.rows, len(fed))
        self.fed = None if min(sizes) == self.num else integers(fed, place)
        self._wanted = None if len(wanted) == len(fed) else integers(wanted, place)
        self.tokens = torch.cat([feed.tokens for _, feed in feeds])
        # Adjacent rows of the pool are read in place; others are gathered.
        adjacent = used == list(range(used[0], used[0] + self.count))
        self.adjacent = slice(used[0], used[0] + self.count) if adjacent else None
        self.used = integers(used, place)
        slots = integers(starts, place)[:, None] + torch.arange(self.num, device=place)
        # Of each token, in all rows of the buffers one after the other.
        self.places = self._of_tokens(self.used[:, None] * pool.buffers.capacity + slots)
        column = torch.arange(self.stop, device=place)
        positions, sees = slots.clone(), column <= slots[:, :, None]
        trees = any(feed.branches for _, feed in feeds)
        at = column.expand(self.count, self.stop).clone() if trees else None
        for i, (_, feed) in enumerate(feeds):
            if feed.branches is None:
                continue
            assert at is not None
            start, size = starts[i], sizes[i]
            own_sees, own_at = tree_attention(start, size, feed.branches)
            sees[i, :size] = False
            sees[i, :size, : start + size] = to_device(own_sees, place)
            at[i, : start + size] = to_device(own_at, place)
            positions[i, :size] = at[i, start : start + size]
        self.masks = {}
        for window, group in forward.masks:
            seen = sees
            if window:
                # A padding token may have nothing in its window: it attends to everything then, and is never read.
                seen = sees & ((column if at is None else at[:, None, :]) > positions[:, :, None] - window)
                seen |= ~seen.any(2, keepdim=True)
            mask = additive(seen, forward.dtype)[:, None]
            self.masks[window, group] = mask if group == 1 else mask.repeat_interleave(group, dim=2)
        self.angles = forward.angles(self.stop).take(self._of_tokens(positions))

    @property
    def cache(self) -> BatchAttention:
        return self

    def attend(self, block: Block, queries: Tensor, fresh: Tensor | None) -> Tensor:
        spec = block.spec
        values = self.pool.buffers.values[spec.store]
        if fresh is not None:
            values.view(-1, values.shape[2])[:, : spec.kv_width].index_copy_(0, self.places, fresh)
        kv = values[:, :, : spec.kv_width]
        if self.adjacent is None:
            here = kv[:, : self.stop].index_select(0, self.used)
        else:
            here = kv[self.adjacent, : self.stop]
            if here.device.type == "cpu":
                # Read it once in order, at full memory speed, so that the heads' strided reads hit the CPU cache.
                here.sum()
        result = attention_of_rows(block, self._padded(queries), here, self.masks[spec.mask], self.num)
        return result if self.fed is None else result.index_select(0, self.fed)

    def keep(self, states: Tensor, index: int) -> None:
        kept = self.pool.buffers.states
        assert kept is not None
        kept[index].view(-1, kept.shape[3]).index_copy_(0, self.places, states)

    def scored(self, x: Tensor) -> Tensor:
        """Of the states x[T, D] of all tokens, those that logits are wanted of."""
        return x if self._wanted is None else x.index_select(0, self._wanted)

    def _of_tokens(self, padded: Tensor) -> Tensor:
        """[R, N] -> [T]."""
        return padded.view(-1) if self.fed is None else padded.view(-1)[self.fed]

    def _padded(self, queries: Tensor) -> Tensor:
        """[T, H, d] -> [R N, H, d]."""
        if self.fed is None:
            return queries
        whole = queries.new_zeros(self.count * self.num, *queries.shape[1:])
        whole[self.fed] = queries
        return whole
