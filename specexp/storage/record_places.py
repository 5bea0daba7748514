"""Where each record lies in its files, in about 8 bytes a record and 16 a prompt: a million are not in memory."""

from __future__ import annotations

from array import array

from specexp.sequences.names import NameNumbers

Key = tuple[str, int, str, int]  # prompt_id, turn, label, repeat
Place = tuple[int, int]  # the number of a file, and a line's first byte there
_OFFSET_BITS = 44


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
