"""Which rows of the buffers a recording has, and the place that each row that is fed has among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

ROWS = (1, 2, 4, 8, 16, 32)  # of recordings


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
