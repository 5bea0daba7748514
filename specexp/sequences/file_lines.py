"""Lines of a file that stay there: in memory is where each of them is, in 16 bytes."""

from __future__ import annotations

import os
import weakref
import zlib
from array import array
from contextlib import suppress
from typing import BinaryIO

from specexp.errors import SpecexpError


class FileLines:
    """Lines of an open file, read when they are asked for, by any thread.

    The file stays open, so that another one that takes its name changes nothing. A line that was written over raises
    `error`, which begins with `where`: what was checked before is no longer there.
    """

    def __init__(self, file: BinaryIO, where: str, error: type[SpecexpError]) -> None:
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, _close, self._descriptor)
        self._where, self._error = where, error
        self._offsets, self._lengths, self._sums = array("Q"), array("I"), array("I")

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, offset: int, line: bytes) -> None:
        """Note the line that begins at this byte."""
        self._offsets.append(offset)
        self._lengths.append(len(line))
        self._sums.append(zlib.crc32(line))

    def __getitem__(self, index: int) -> bytes:
        """Return a line, with its line feed if it has one."""
        left, offset = self._lengths[index], self._offsets[index]
        parts: list[bytes] = []
        while left:
            try:
                parts.append(os.pread(self._descriptor, left, offset))
            except OSError as why:
                raise self._error(f"{self._where} can no longer be read: {why.strerror}.") from why
            if not parts[-1]:
                break
            left, offset = left - len(parts[-1]), offset + len(parts[-1])
        line = parts[0] if len(parts) == 1 else b"".join(parts)
        if zlib.crc32(line) != self._sums[index]:
            raise self._error(
                f"{self._where} has been written over since it was read; put it back as it was, and run the same"
                " command again."
            )
        return line


def _close(descriptor: int) -> None:
    with suppress(OSError):  # at the end of a process, it may be closed
        os.close(descriptor)
