"""A forward of several rows over a bucket of slots that uses no host values, so that it can be recorded and replayed.

Each row is fed the same number of tokens, from a slot of its own on; a tensor says which. What a row is fed too many is
padding, written after its sequence, where the next tokens overwrite it. A row that is not fed at all starts below 0:
its padding goes to the slots that the buffers reserve at the end of each row. `RowLayout` has the rows of the buffers
that are in a recording, and the place that each row that is fed has among them.

Shapes: R rows, N tokens of each, B rows of the buffers, C bucket, W values per token and layer, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from specexp.lm.blocks.block import Block
from specexp.lm.native.attention import additive, attention_of_rows
from specexp.lm.native.kv_cache import Buffers
from specexp.lm.native.native_forward import NativeForward

T = TypeVar("T")

ROWS = (1, 2, 4, 8, 16, 32)  # of recordings
UNUSED = -(1 << 30)  # where a row starts that is not fed: no number of steps brings it to 0


def row_count(num: int, rows: int) -> int:
    """The number of rows of the recording that takes `num` of the buffers' `rows`."""
    return min(next(each for each in ROWS if each >= num), rows)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The rows of a recording, all different, and the places among them of those that are fed."""

    rows: list[int]
    places: list[int]
    in_place: bool  # the rows are the first ones of the buffers

    @classmethod
    def of(cls, used: list[int], rows: int) -> RowLayout:
        """For the rows `used` of buffers of `rows` rows: the first ones, or else those used and idle ones."""
        count = row_count(len(used), rows)
        if max(used) < count:
            return cls(list(range(count)), used, True)
        idle = [row for row in range(rows) if row not in used]
        return cls([*used, *idle][:count], list(range(len(used))), False)

    @property
    def count(self) -> int:
        return len(self.rows)

    def by_place(self, values: Sequence[T], rest: T) -> list[T]:
        """A value for each place, of values for each row that is fed; `rest` where none is."""
        result = [rest] * self.count
        for place, value in zip(self.places, values, strict=True):
            result[place] = value
        return result


class RowsForward:
    """A forward over the first `bucket` slots of the rows that rows[R] names when it runs, all different. With
    `in_place` they are the first ones, which are read without copying. After the buffers have grown, make a new one."""

    def __init__(
        self, forward: NativeForward, buffers: Buffers, num_valid_ids: int | None, rows: Tensor, in_place: bool,
        bucket: int,
    ) -> None:  # fmt: skip
        self._forward, self._buffers, self._num_valid_ids = forward, buffers, num_valid_ids
        self.rows, self._in_place, self._bucket = rows, in_place, bucket
        self._columns = torch.arange(bucket, device=forward.device)
        self._scratch = buffers.capacity - buffers.reserved
        self._angles = forward.angles(buffers.capacity)

    def chain(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Final hidden states [R N, D] of tokens[R N], N of each row, from the slots start[R] on."""
        num = tokens.shape[0] // self.rows.shape[0]
        slots = start.clamp(min=0)[:, None] + self._columns[:num]
        written = torch.where((start < 0)[:, None], self._scratch + self._columns[:num], slots)
        seen = self._columns <= slots[:, :, None]
        masks = {}
        for window, group in self._forward.masks:
            within = seen & (self._columns > slots[:, :, None] - window) if window else seen
            masks[window, group] = additive(within, self._forward.dtype)[:, None].repeat_interleave(group, dim=2)
        places = (self.rows[:, None] * self._buffers.capacity + written).view(-1)
        cache = _Rows(self._buffers, self.rows, self._in_place, self._bucket, places, masks)
        return self._forward(tokens, self._angles.take(slots.view(-1)), cache)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of hidden states: [N, D] -> [N, V]."""
        return self._forward.logits(x)[:, : self._num_valid_ids]


class _Rows:
    """The `Cache` of a bucket of several rows: writes by index and attends under masks."""

    rotate_and_store = None

    def __init__(
        self, buffers: Buffers, rows: Tensor, in_place: bool, bucket: int, places: Tensor,
        masks: dict[tuple[int, int], Tensor],
    ) -> None:  # fmt: skip
        self._buffers, self._rows, self._in_place, self._bucket = buffers, rows, in_place, bucket
        self._places, self._masks = places, masks  # places[R N] in all rows of the buffers, one after the other

    def attend(self, block: Block, queries: Tensor, fresh: Tensor | None) -> Tensor:
        spec, values = block.spec, self._buffers.values[block.spec.store]
        if fresh is not None:
            values.view(-1, values.shape[2])[:, : spec.kv_width].index_copy_(0, self._places, fresh)
        here = values[:, : self._bucket, : spec.kv_width]
        count = self._rows.shape[0]
        here = here[:count] if self._in_place else here.index_select(0, self._rows)
        num = self._places.shape[0] // count
        return attention_of_rows(block, queries, here, self._masks[spec.mask], num)

    def keep(self, states: Tensor, index: int) -> None:
        kept = self._buffers.states
        assert kept is not None
        kept[index].view(-1, kept.shape[3]).index_copy_(0, self._places, states)
