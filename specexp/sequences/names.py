"""Numbers of names, in some 16 bytes a name: those of millions of prompts are not in memory.

A name is known by 96 bits of its BLAKE2 hash, so that no two of them share a number.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator
from hashlib import blake2b
from typing import TypeVar

Item = TypeVar("Item")

# Names are looked up in a dict, at some 190 bytes each, until there are this many, or a part of those before them.
_RECENT, _PART = 1_024, 64


class NameNumbers:
    """Numbers names from 0 in the order in which they come."""

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        # Of the names that are not recent: the first 64 bits in ascending order, the other 32, and the numbers.
        self._high, self._low, self._numbers = array("Q"), array("I"), array("I")

    def __len__(self) -> int:
        return len(self._high) + len(self._recent)

    def find(self, name: str) -> int | None:
        """Return the number of a name; None if it did not come yet."""
        digest = _digest(name)
        if (number := self._recent.get(digest)) is not None:
            return number
        high, low = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
        place = bisect_left(self._high, high)
        while place < len(self._high) and self._high[place] == high:
            if self._low[place] == low:
                return self._numbers[place]
            place += 1
        return None

    def number(self, name: str) -> int:
        """Return the number of a name, which gets the next one if it is new."""
        result = self.find(name)
        if result is None:
            result = len(self)
            self._recent[_digest(name)] = result
            if len(self._recent) >= max(_RECENT, len(self._high) // _PART):
                self._sort_in()
        return result

    def _sort_in(self) -> None:
        import numpy as np

        recent = np.frombuffer(b"".join(self._recent), dtype=np.dtype([("high", "<u8"), ("low", "<u4")]))
        more = {
            "_high": recent["high"],
            "_low": recent["low"],
            "_numbers": np.array([*self._recent.values()], np.uint32),
        }
        order = np.argsort(np.concatenate([np.frombuffer(self._high, np.uint64), more["_high"]]), kind="stable")
        for name, values in more.items():  # one after another: two copies of one column at a time
            before = getattr(self, name)
            joined = np.concatenate([np.frombuffer(before, before.typecode), values.astype(before.typecode)])[order]
            after = array(before.typecode)
            after.frombytes(joined.tobytes())
            setattr(self, name, after)
        self._recent.clear()


def first_of_each(items: Iterable[Item], key: Callable[[Item], Hashable], count: int) -> Iterator[Item]:
    """Yield the first `count` items of a stream, without those whose key occurred before."""
    seen = NameNumbers()
    for item in items:
        before = len(seen)
        if before == count:
            return
        if seen.number(repr(key(item))) == before:
            yield item


def first_twice(names: Iterable[str], numbers: NameNumbers | None = None) -> str | None:
    """Return the first name that occurred before, or None. `numbers`, if given, numbers those before it."""
    numbers = NameNumbers() if numbers is None else numbers
    for count, name in enumerate(names):
        if numbers.number(name) < count:
            return name
    return None


def _digest(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()
