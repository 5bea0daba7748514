"""Files of lines that rotate: `records.jsonl` first, and when that is full `records-0002.jsonl`, and so on.

A small run has the first one only. A line is never divided between two files, and the next file is begun by its first
line. Whatever moment a process is killed at, all files but the last are therefore whole, and only the last line of the
last one may be cut off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from specexp.errors import OutputError
from specexp.storage.files import append_line, open_lines

MOST_BYTES = 256 * 2**20  # after which the next file is begun


def numbered(path: Path, number: int) -> Path:
    """Return the path of file `number`, which counts from 1."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number:04d}{path.suffix}")


def existing(path: Path) -> list[Path]:
    """Return the files that exist, in their order. Raises OutputError if one before the last is missing."""
    pattern = re.compile(rf"{re.escape(path.stem)}-(\d{{4,}}){re.escape(path.suffix)}")
    others = path.parent.iterdir() if path.parent.is_dir() else ()
    numbers = {int(match[1]) for each in others if (match := pattern.fullmatch(each.name))}
    last = max(numbers, default=1 if path.exists() else 0)
    result = [numbered(path, number) for number in range(1, last + 1)]
    for each in result:
        if not each.exists():
            raise OutputError(
                f"'{each}' is missing, and '{result[-1].name}', which follows it, is there; put it back, or start again"
                " in another output folder."
            )
    return result


class LineReader:
    """Reads the files' lines, all in their order or one by its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[int, BinaryIO] = {}

    def all(self) -> Iterator[bytes]:
        """Yield the whole lines of all files. Raises OutputError."""
        for path in existing(self._path):
            with reading(path), path.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))

    def at(self, number: int, start: int) -> bytes:
        """Return the line of file `number` that begins at this byte. Raises OutputError."""
        path = numbered(self._path, number)
        with reading(path):
            if number not in self._files:
                self._files[number] = path.open("rb")
            self._files[number].seek(start)
            return self._files[number].readline()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}; make it readable.") from error


class LineWriter:
    """Appends lines to the last of the files, and begins the next one where that is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = max(1, len(existing(path)))
        self._file: FileIO | None = None

    def append(self, line: str) -> tuple[int, int]:
        """Append a line, which is in a file when this returns; return that file's number, and the line's first byte.

        Raises OutputError.
        """
        if self._file is None:
            self._file = open_lines(numbered(self._path, self._number))
        start = self._file.seek(0, 2)
        if start >= MOST_BYTES:
            self.close()
            self._number += 1
            self._file, start = open_lines(numbered(self._path, self._number)), 0
        append_line(self._file, numbered(self._path, self._number), line)
        return self._number, start

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
