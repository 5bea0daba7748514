"""Reads rows of a local file of JSON lines or one JSON document, and checks a CSV file before a library reads it."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

from specexp import reading
from specexp.errors import TaskError, shown

Placed = tuple[str, int, dict[str, Any]]  # where the row is, its number, its values


def rows_of_lines(text: str, where: str) -> Iterator[Placed]:
    """Yield one object per line. Only a line feed ends a line: JSON texts may hold other line separators."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removeprefix(reading.BOM)  # inside a file if another file was appended
        if line.strip():
            place = f"{where}, line {number}"
            yield place, number, _object(reading.parse_json(line, place, TaskError), place)


def rows_of_document(text: str, where: str) -> Iterator[Placed]:
    """Yield rows from a list of objects, a single object, or one object per line."""
    if not text.lstrip().startswith("[") and _is_object(text.lstrip().split("\n", 1)[0]):
        yield from rows_of_lines(text, where)
        return
    result = reading.parse_json(text, where, TaskError)
    for number, values in enumerate(result if isinstance(result, list) else [result], 1):
        place = f"{where}, row {number}"
        yield place, number, _object(values, place)


def check_csv(text: str, where: str) -> None:
    """Check a CSV file for faults that the library would misread or report less clearly: a column named twice, a row
    with more fields than there are columns. Raises TaskError."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
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
