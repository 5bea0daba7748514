"""A forward of one row over a bucket of slots that uses no host values, so that it can be recorded and replayed.

The tokens' slots are a tensor; keys and values are written by index; attention runs over the first slots of the row,
as many as the bucket has, under a mask. The results equal those of `kv_cache.py` except for rounding, since the sums
include masked zeros.

Shapes: N tokens, C bucket, H heads, K key-value heads, d head size, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specexp.lm.blocks.block import Block
from specexp.lm.blocks.rotary import Angles
from specexp.lm.kernels.ordered_attention import slots_by_position
from specexp.lm.kernels.table import Kernels
from specexp.lm.model import Branches
from specexp.lm.native.attention import additive, grouped, tree_attention, window_mask
from specexp.lm.native.kv_cache import Pool
from specexp.lm.native.native_forward import NativeForward
from specexp.lm.native.ordered_cache import OrderedCache


class BucketForward:
    """A forward over the first `bucket` slots of a pool's first row; after the pool has grown, make a new one."""

    def __init__(self, pool: Pool, bucket: int) -> None:
        self._forward, self._num_valid_ids, self._bucket = pool.forward, pool.num_valid_ids, bucket
        self._columns = torch.arange(bucket, device=self._forward.device)
        self._angles = self._forward.angles(pool.capacity)
        self._flat = pool.buffers.flat[0]
        self._states = None if pool.buffers.states is None else pool.buffers.states[:, 0]
        self._split = [
            (keys.narrow(2, 0, bucket), values.narrow(2, 0, bucket)) for keys, values in pool.buffers.split[0]
        ]

    def chain(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Final hidden states [N, D] of a chain tokens[N] fed from slot start[1] on."""
        slots = start + self._columns[: tokens.shape[0]]
        if self._forward.invariant or self._forward.kernels.attends:  # which compute the masks from the slots
            return self._run(tokens, slots, slots, None)
        seen = self._columns <= slots[:, None]
        masks = {
            window: seen & (self._columns > slots[:, None] - window) if window else seen
            for window in kinds(self._forward)
        }
        return self._run(tokens, slots, slots, masks)

    def tree(self, tokens: Tensor, start: Tensor, positions: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """Final hidden states [N, D] of tokens[N] fed from slot start[1] on, at positions[N]; seen[N, C] per window, or
        of an invariant forward the one index[N, C]."""
        slots = start + self._columns[: tokens.shape[0]]
        if self._forward.invariant:
            return self._ordered(tokens, slots, positions, seen[0])
        return self._run(tokens, slots, positions, dict(zip(kinds(self._forward), seen, strict=True)))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of hidden states: [N, D] -> [N, V]."""
        return self._forward.logits(x)[:, : self._num_valid_ids]

    def _run(self, tokens: Tensor, slots: Tensor, positions: Tensor, seen: Mapping[int, Tensor] | None) -> Tensor:
        if self._forward.invariant:
            return self._ordered(tokens, slots, positions, None)
        cache: Bucket | KernelBucket
        if self._forward.kernels.attends:
            cache = KernelBucket(self._forward.kernels, self._flat, self._states, slots, self._bucket, seen)
        else:
            assert seen is not None
            cache = Bucket(self._forward, self._flat, self._split, self._states, slots, seen)
        return self._forward(tokens, self._angles.take(positions), cache)

    def _ordered(self, tokens: Tensor, slots: Tensor, positions: Tensor, index: Tensor | None) -> Tensor:
        cache = OrderedCache(
            self._forward.kernels, self._flat, self._states, slots, positions, index, self._bucket, slots.shape[0]
        )
        return self._forward(tokens, self._angles.take(positions), cache)


class Bucket:
    """The `Cache` of a bucket: writes by index and attends under masks."""

    rotate_and_store = None

    def __init__(
        self,
        forward: NativeForward,
        flat: Sequence[Tensor],
        split: Sequence[tuple[Tensor, Tensor]],
        states: Tensor | None,
        slots: Tensor,
        seen: Mapping[int, Tensor],
    ) -> None:
        self._flat, self._split, self._states, self._slots = flat, split, states, slots
        additives = {window: additive(each, forward.dtype) for window, each in seen.items()}
        self._masks = {(window, group): repeated(additives[window], group) for window, group in forward.masks}

    def attend(self, block: Block, queries: Tensor, fresh: Tensor | None) -> Tensor:
        store = block.spec.store
        if fresh is not None:
            self._flat[store].index_copy_(0, self._slots, fresh)
        return grouped(block, queries, *self._split[store], self._masks[block.spec.mask])

    def keep(self, states: Tensor, index: int) -> None:
        assert self._states is not None
        self._states[index].index_copy_(0, self._slots, states)


class KernelBucket:
    """The `Cache` of a bucket whose attention is computed by kernels."""

    def __init__(
        self,
        kernels: Kernels,
        flat: Sequence[Tensor],
        states: Tensor | None,
        slots: Tensor,
        bucket: int,
        seen: Mapping[int, Tensor] | None,
    ) -> None:
        """`seen` has a mask [N, C] for each window; None: of a chain, whose tokens attend to the slots up to theirs."""
        assert kernels.rotate_and_store is not None
        assert kernels.attend is not None
        self._rotate_and_store, self._attend = kernels.rotate_and_store, kernels.attend
        self._flat, self._states, self._slots, self._bucket, self._seen = flat, states, slots, bucket, seen

    def rotate_and_store(self, block: Block, projected: Tensor, angles: Angles) -> None:
        spec = block.spec
        table = None if spec.rotary is None else angles.tables[spec.rotary]
        flat = self._flat[spec.store] if spec.stores else None
        self._rotate_and_store(projected, table, spec.heads, spec.kv_heads, flat, self._slots)

    def attend(self, block: Block, queries: Tensor, fresh: Tensor | None) -> Tensor:
        spec, flat = block.spec, self._flat[block.spec.store]
        if fresh is not None:
            flat.index_copy_(0, self._slots, fresh)
        seen = None if self._seen is None else self._seen[spec.window]
        return self._attend(
            queries, flat, flat.shape[1] // (2 * spec.head_dim), self._slots, spec.window, seen, self._bucket,
            spec.score_multiplier, spec.score_softcap, block.sinks,
        )  # fmt: skip

    def keep(self, states: Tensor, index: int) -> None:
        assert self._states is not None
        self._states[index].index_copy_(0, self._slots, states)


def kinds(forward: NativeForward) -> list[int]:
    """The different sliding windows of the layers, sorted; 0 for none."""
    return sorted({window for window, _ in forward.masks})


def tree_masks(
    forward: NativeForward, start: int, num: int, branches: Branches, size: int, bucket: int
) -> tuple[list[Tensor], Tensor]:
    """Masks [size, bucket] of the tokens in slots start .. start + num - 1, one per window, and their positions; of an
    invariant forward one index in place of the masks.

    Both are on the host, where the tree is. Padding attends to the first slot: an empty mask row would give NaN.
    """
    sees, at = tree_attention(start, num, branches)
    if forward.invariant:
        index = torch.zeros(size, bucket, dtype=torch.int64)
        index[:num, : start + num] = slots_by_position(sees, at)
        return [index], at[start:]
    masks = []
    for window in kinds(forward):
        mask = torch.zeros(size, bucket, dtype=torch.bool)
        mask[:num, : start + num] = window_mask(sees, at, window)
        mask[num:, 0] = True
        masks.append(mask)
    return masks, at[start:]


def tree_inputs(forward: NativeForward, size: int, bucket: int) -> list[Tensor]:
    """Zeros in the form of what `tree_masks` gives."""
    kind, number = (torch.int64, 1) if forward.invariant else (torch.bool, len(kinds(forward)))
    return [torch.zeros(size, bucket, dtype=kind, device=forward.device) for _ in range(number)]


def repeated(mask: Tensor, group: int) -> Tensor:
    """Repeat each row of mask[N, C] for the `group` heads that share a key: [N group, C]."""
    return mask if group == 1 else mask[:, None].expand(-1, group, -1).reshape(-1, mask.shape[1])
