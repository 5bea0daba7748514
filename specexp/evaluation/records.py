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
    """`records.jsonl` of one configuration: what was done before, and a place to append."""

    def __init__(self, path: Path, settings: str) -> None:
        self._path = path
        self._settings = settings
        self.records: list[Record] = list(self._read())
        self._file: TextIO | None = None

    @property
    def done(self) -> set[Key]:
        return {key_of(record) for record in self.records}

    def append(self, record: Record) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        self.records.append(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> Iterator[Record]:
        if not self._path.exists():
            return
        good = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError("no newline at its end")
                    record = json.loads(line)
                    key_of(record)
                except (ValueError, KeyError, TypeError) as error:
                    if file.read(1):
                        raise OutputError(
                            f"{self._path}, line {number} is not a record ({error}); the file was changed by hand."
                            " Start again in another output folder."
                        ) from error
                    print(
                        f"warning: {self._path}, line {number} is cut off; it is dropped and computed again.",
                        file=sys.stderr,
                    )
                    break
                if record["settings_hash"] != self._settings:
                    raise OutputError(
                        f"{self._path}, line {number} belongs to configuration {record['settings_hash']}, this one is"
                        f" {self._settings}; resume with the settings it was started with, or name another output."
                    )
                good += len(line)
                yield record
        if good < self._path.stat().st_size:
            with self._path.open("rb+") as file:
                file.truncate(good)
