"""Reads rows of a local file of JSON lines or one JSON document, and checks a CSV file before a library reads it.

Lines are read one by one: of a large file, a line is in memory. A document is parsed whole.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from specexp import reading
from specexp.errors import TaskError, shown


def lines_of(file: BinaryIO, where: str) -> Iterator[tuple[int, bytes, str]]:
    """Yield (offset, line, text) of each line; only a line feed ends one. Raises TaskError unless it is UTF-8."""
    offset = 0
    for line in file:
        yield offset, line, reading.decode(line, where, TaskError, offset=offset)
        offset += len(line)


def row_of(text: str, place: str) -> dict[str, Any] | None:
    """Return the object of a line, None for an empty one. Raises TaskError, which names the place."""
    text = text.removeprefix(reading.BOM)  # inside a file if another file was appended
    return _object(reading.parse_json(text, place, TaskError), place) if text.strip() else None


def read_again(line: bytes) -> dict[str, Any]:
    """Return the object of a line that `row_of` has checked."""
    values: dict[str, Any] = json.loads(line.decode().lstrip(reading.BOM))
    return values


def rows_of_document(text: str, where: str) -> list[dict[str, Any]] | None:
    """Return the rows of a list of objects or of a single object; None if it has one object per line."""
    if not text.lstrip().startswith("[") and _is_object(text.lstrip().split("\n", 1)[0]):
        return None
    result = reading.parse_json(text, where, TaskError)
    rows = result if isinstance(result, list) else [result]
    return [_object(values, f"{where}, row {number}") for number, values in enumerate(rows, 1)]


def check_csv(file: BinaryIO, where: str) -> None:
    """Check a CSV file for faults that the library would misread or report less clearly: a column named twice, a row
    with more fields than there are columns. Raises TaskError."""
    for _ in lines_of(file, where):
        pass
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(text)
        names = next((row for row in reader if row), [])
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise TaskError(f"{where}: column {shown(twice)} is given twice; give every column its own name.")
        number = 0
        for number, row in enumerate((row for row in reader if row), 1):
            if len(row) > len(names):
                raise TaskError(
                    f"{where}, row {number}: has {len(row)} fields, but there are {len(names)} columns; put texts with"
                    ' commas in "".'
                )
    except csv.Error as error:
        raise TaskError(f"{where}, line {reader.line_num}: not CSV ({error}).") from error
    finally:
        csv.field_size_limit(limit)
        text.detach()  # who opened the file closes it
    if not number:
        raise TaskError(f"{where}: has no rows; give column names, and a row below them.")


def _object(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise TaskError(f"{where}: must be an object, got {type(values).__name__}.")
    return values


def _is_object(line: str) -> bool:
    """True if a line is a JSON object by itself."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
