"""A sequence of records that is in files, not in memory: each pass over it reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar, overload

from specexp.sequences.names import NameNumbers
from specexp.storage.numbered_files import LineReader
from specexp.storage.record_places import Key, RecordPlaces

R = TypeVar("R")
_LATEST = 256  # records that are remembered: those of one prompt follow each other


class PassedLines(Sequence[R]):
    """A sequence that is read from its beginning to find an item by its index."""

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> list[R]: ...

    def __getitem__(self, index: int | slice) -> R | list[R]:
        if isinstance(index, slice):
            return list(islice(self, *index.indices(len(self))))
        return next(islice(self, range(len(self))[index], None))


class StoredLines(PassedLines[R]):
    """One record a line, in the order of the files; `places` has the keys, and `parse` and `key_of` read a line."""

    def __init__(
        self, path: Path, places: RecordPlaces, parse: Callable[[bytes], R], key_of: Callable[[R], Key]
    ) -> None:
        self._reader, self._places, self._parse, self._key_of = LineReader(path), places, parse, key_of
        self._latest: OrderedDict[Key, R] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[R]:
        return (self._remembered(line) for line in self._reader.all())

    def find(self, key: Key) -> R:
        """Return the record with this key; raises KeyError if there is none."""
        if key in self._latest:
            return self._latest[key]
        place = self._places.find(key)
        if place is None:
            raise KeyError(key)
        return self._remembered(self._reader.at(*place))

    @property
    def prompts(self) -> NameNumbers:
        """The numbers of their prompts."""
        return self._places.prompts

    def close(self) -> None:
        self._reader.close()

    def _remembered(self, line: bytes) -> R:
        record = self._parse(line)
        self._latest[self._key_of(record)] = record
        if len(self._latest) > _LATEST:
            self._latest.popitem(last=False)
        return record


class ChosenLines(PassedLines[R]):
    """Those records of a `StoredLines` that are chosen: none is held, and to count them is a pass of its own."""

    def __init__(self, lines: StoredLines[R], is_chosen: Callable[[R], bool]) -> None:
        self._lines, self._is_chosen = lines, is_chosen

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[R]:
        return filter(self._is_chosen, self._lines)

    def find(self, key: Key) -> R:
        """Return the record with this key; raises KeyError if there is none among those that are chosen."""
        result = self._lines.find(key)
        if not self._is_chosen(result):
            raise KeyError(key)
        return result
