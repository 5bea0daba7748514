"""One JSON line per prompt and setting, appended and flushed; the only truth an evaluation leaves behind.

Records hold integers, ids, texts and seconds. Ratios are computed from sums of them, in `metrics.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from specexp.errors import OutputError

Record = dict[str, Any]
Key = tuple[str, int, str, int]  # prompt_id, turn, label, repeat


def key_of(record: Record) -> Key:
    return record["prompt_id"], record["turn"], record["label"], record["repeat"]


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class RecordFile:
    """`records.jsonl` of one configuration: what was done before, and a place to append.

    Reading changes nothing; `repair` cuts off a last line that was not written whole.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._path = path
        self._settings = settings
        self._good = 0  # bytes of whole lines
        self.records: list[Record] = list(self._read())
        self._by_key = {key_of(record): record for record in self.records}
        self._file: TextIO | None = None

    @property
    def done(self) -> set[Key]:
        return set(self._by_key)

    def find(self, key: Key) -> Record:
        """The record of this key, which must be there."""
        return self._by_key[key]

    def repair(self) -> None:
        """Cut the file behind its last whole line. Only for who holds the folder."""
        if self._path.exists() and self._good < self._path.stat().st_size:
            where = f"{self._path}, line {len(self.records) + 1}"
            print(f"warning: {where} is cut off; it is dropped and computed again.", file=sys.stderr)
            with self._path.open("rb+") as file:
                file.truncate(self._good)

    def append(self, record: Record) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        self.records.append(record)
        self._by_key[key_of(record)] = record

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> Iterator[Record]:
        if not self._path.exists():
            return
        lines = self._path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if number == len(lines) and not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                key_of(record)
                found = record["settings_hash"]
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self._path}, line {number} is not a record ({type(error).__name__}: {error});"
                    " the file was changed by hand. Start again in another output folder."
                ) from error
            if found != self._settings:
                raise OutputError(
                    f"{self._path}, line {number} belongs to configuration {found}, this one is {self._settings};"
                    " resume with the settings it was started with, or name another output folder."
                )
            self._good += len(line)
            yield record
