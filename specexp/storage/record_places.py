"""Where each record lies in its files, in about 8 bytes a record and 16 a prompt: a million records are not in memory.

A prompt is known by 96 bits of the BLAKE2 hash of its id, so that no two of them share a number.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import blake2b

Key = tuple[str, int, str, int]  # prompt_id, turn, label, repeat
Place = tuple[int, int]  # the number of a file, and a line's first byte there
_OFFSET_BITS = 44
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


class RecordPlaces:
    """The place of each record, by its key."""

    def __init__(self) -> None:
        self.prompts = NameNumbers()
        self._columns: dict[tuple[int, str, int], array[int]] = {}  # by turn, label and repeat: places by prompt
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and len(key) == 4 and self.find(key) is not None

    def add(self, key: Key, place: Place) -> bool:
        """Note a record; returns False, and notes nothing, if there is one with this key."""
        prompt = self.prompts.number(key[0])
        column = self._columns.setdefault(key[1:], array("q"))
        if prompt >= len(column):
            column.extend([-1] * (prompt + 1 - len(column)))
        if column[prompt] >= 0:
            return False
        column[prompt] = place[0] << _OFFSET_BITS | place[1]
        self._len += 1
        return True

    def find(self, key: Key) -> Place | None:
        """Return where the record with this key is; None if there is none."""
        prompt, column = self.prompts.find(key[0]), self._columns.get(key[1:])
        if prompt is None or column is None or prompt >= len(column) or column[prompt] < 0:
            return None
        return column[prompt] >> _OFFSET_BITS, column[prompt] & (1 << _OFFSET_BITS) - 1


def _digest(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()
