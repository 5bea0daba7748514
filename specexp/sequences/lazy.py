"""Sequences whose items are made when they are asked for: of a million, a few are in memory."""

from __future__ import annotations

import copy
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, Generic, Self, TypeVar, overload

Item = TypeVar("Item")
Other = TypeVar("Other")


class RecentItems(Generic[Item]):
    """Makes items by their place, and keeps those used last, while their sizes add up to at most `most`.

    A small run has all of its items here, and makes each of them once. An item must be the same whenever it is made.
    """

    def __init__(self, make: Callable[[int], Item], size: Callable[[Item], int], most: int) -> None:
        self._make, self._size, self._most = make, size, most
        self._kept: OrderedDict[int, tuple[Item, int]] = OrderedDict()
        self._total = 0
        self._lock = Lock()  # engines are asked from several threads

    def __call__(self, place: int) -> Item:
        with self._lock:
            if (entry := self._kept.get(place)) is not None:
                self._kept.move_to_end(place)
                return entry[0]
        item = self._make(place)
        self.put(place, item)
        return item

    def put(self, place: int, item: Item) -> None:
        """Keep an item that was made elsewhere."""
        size = self._size(item)
        with self._lock:
            if size > self._most or place in self._kept:
                return
            self._kept[place] = item, size
            self._total += size
            while self._total > self._most:
                self._total -= self._kept.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()
            self._total = 0


class LazySequence(Sequence[Item]):
    """The items that `make` returns for each of `places`, or for 0 to `places` - 1.

    `each`, if given, yields all items of a whole sequence in their order, where that takes less than one by one.
    """

    def __init__(
        self, make: Callable[[int], Item], places: int | range | array[int],
        each: Callable[[], Iterator[Item]] | None = None,
    ) -> None:  # fmt: skip
        self._make, self._each = make, each
        self._places: range | array[int] = range(places) if isinstance(places, int) else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Item | Self:
        if isinstance(index, slice):
            return self._of(self._places[index])
        return self._make(self._places[index])

    def __iter__(self) -> Iterator[Item]:
        # The iterator of Sequence would take an IndexError of `make` for the end.
        return iter(self._each()) if self._each is not None else map(self._make, self._places)

    def __eq__(self, other: object) -> bool:
        """True for a sequence of equal items, whatever its type."""
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self):,}>"

    def at(self, indices: Sequence[int]) -> Self:
        """Return the items at these indices, in this order."""
        return self._of(array("q", map(self._places.__getitem__, indices)))

    def _of(self, places: range | array[int]) -> Self:
        result = copy.copy(self)
        result._places, result._each = places, None
        return result


def lazily(change: Callable[[Any], Other], items: Sequence[Any]) -> LazySequence[Other]:
    """Return what `change` returns for each item, when it is asked for."""
    return LazySequence(lambda index: change(items[index]), len(items))


def at(items: Sequence[Item], indices: Sequence[int]) -> Sequence[Item]:
    """Return the items at these indices: lazily, if they are."""
    return items.at(indices) if isinstance(items, LazySequence) else [items[index] for index in indices]
