"""Records what a command has measured, one JSON line per unit: a resumed command continues after the last whole line.

A unit has a key and is computed once. The first line holds the facts (models, data, machine): a folder that was begun
with other facts is refused, and the error names what changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from specexp.errors import OutputError
from specexp.storage.files import CHECKSUM, append_line, checksum, open_lines

FILE = "progress.jsonl"
Key = tuple[str | int, ...]
_FACTS: Key = ("facts",)


class Journal:
    """Units by key. Without a file, they are kept in memory only."""

    def __init__(self) -> None:
        self._units: dict[Key, Any] = {}
        self._file: FileIO | None = None
        self._path = Path()
        self.resumed = False

    @classmethod
    @contextmanager
    def open(cls, path: Path, facts: Mapping[str, Any]) -> Iterator[Journal]:
        """Open the journal in a file; the caller locks its folder. Raises OutputError if it has other facts."""
        journal = cls()
        good = journal._read(path)
        journal.resumed = bool(journal._units)
        before = journal._units.get(_FACTS)
        now = json.loads(json.dumps(facts))
        if journal.resumed and before != now:
            names = sorted({*now, *(before or {})})
            changed = " and ".join(name for name in names if (before or {}).get(name) != now.get(name))
            raise OutputError(f"'{path.parent}' was begun with another {changed}; name another output folder.")
        if path.exists() and good < path.stat().st_size:
            print(f"warning: the last line of {path} is cut off; it is dropped and measured again.", file=sys.stderr)
            with path.open("rb+") as file:
                file.truncate(good)
        journal._path = path
        with open_lines(path) as journal._file:
            if not journal.resumed:
                journal._add(_FACTS, now)
            yield journal
        journal._file = None

    def count(self, kinds: Collection[str]) -> int:
        """Number of units whose key begins with one of these words."""
        return sum(key[0] in kinds for key in self._units)

    def __contains__(self, key: Key) -> bool:
        return key in self._units

    def unit(self, key: Key, make: Callable[[], Any]) -> Any:
        """The value of a unit, as JSON: from the file if it is there, else computed by `make` and appended."""
        if key not in self._units:
            self._add(key, make())
        return self._units[key]

    def _add(self, key: Key, value: Any) -> None:
        if self._file is not None:
            line = {"key": list(key), "value": value}
            append_line(self._file, self._path, json.dumps({**line, CHECKSUM: checksum(line)}, ensure_ascii=False))
        self._units[key] = value

    def _read(self, path: Path) -> int:
        """Read a file's units; returns the number of bytes of its whole lines."""
        good = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
            if not line.endswith(b"\n"):
                break
            try:
                result = json.loads(line)
                if CHECKSUM in result and result[CHECKSUM] != checksum(result):
                    raise ValueError("it does not fit its checksum")
                self._units[tuple(result["key"])] = result["value"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise OutputError(
                    f"{path}, line {number} cannot be read ({type(error).__name__}: {error}); the file was changed by"
                    " hand. Start again in another output folder."
                ) from error
            good += len(line)
        return good
