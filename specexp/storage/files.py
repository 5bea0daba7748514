"""Writes this project's files atomically, and reads them back with one error message for whatever is broken.

A full disk, or a folder that is not writable, raises an OutputError that names the file. So does a JSON file that is
cut off, was changed by hand, or does not match its shape. This module does not know what the files are for.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from specexp.errors import OutputError, first_line

CHECKSUM = "checksum"  # key of the checksum in a line of JSON
# Error numbers for a full disk or missing permissions, which the user can fix.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)
_IN_WORDS = tuple(os.strerror(number) for number in UNWRITABLE)
# Libraries in other languages raise their own errors when they write files; these are parts of their messages.
_LIBRARIES = ("os error", "PytorchStreamWriter", "file write failed")

# A type, a tuple of alternatives, [shape], {str: shape}, {int: shape}, or {name: shape, "name?": shape}.
Shape = Any


def is_unwritable(error: BaseException) -> bool:
    """True if a file could not be written because of the system, such as a full disk or missing permissions."""
    if isinstance(error, OSError):
        return error.errno in UNWRITABLE
    said = str(error)
    return any(mark in said for mark in _LIBRARIES) or any(words in said for words in _IN_WORDS)


def unwritable(path: Path | str, error: BaseException) -> OutputError:
    """Return the OutputError for a file that could not be written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return OutputError(
        f"'{path}' cannot be written: {reason}. What was written before stays; make room there, or make it writable,"
        " and go on."
    )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and move the file to `path` at the end. Raises OutputError."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, Exception) and (isinstance(error, OSError) or is_unwritable(error)):
            raise unwritable(path, error) from error
        raise


def append_line(file: FileIO, path: Path, line: str) -> None:
    """Write one line to an unbuffered file, so that no later flush can fail.

    Raises OutputError; a partly written line has no newline, by which readers recognize it.
    """
    left = memoryview(f"{line}\n".encode())
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise unwritable(path, error) from error


def open_lines(path: Path) -> FileIO:
    """Open a file for appending lines, unbuffered. Raises OutputError."""
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise unwritable(path, error) from error


def checksum(value: Mapping[str, object]) -> str:
    """Hash of a JSON object without its checksum in sixteen hex digits, independent of its formatting and key order."""
    rest = {key: each for key, each in value.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically. Raises OutputError."""
    with writing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raises OutputError."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def read_json(path: Path, shape: Shape = object, way_out: str = "Put back the file as it was written.") -> Any:
    """Read a JSON file of this project; None if it does not exist. Raises OutputError if it is not of `shape`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}. {way_out}") from error
    try:
        result = json.loads(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}"
        raise OutputError(
            f"{where}: not JSON ({error.msg}); the file was cut off or changed by hand. {way_out}"
        ) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise OutputError(f"{path}, line {line}: not UTF-8 text; the file was changed. {way_out}") from error
    except (RecursionError, ValueError) as error:
        raise OutputError(f"{path}: not JSON that can be read ({error}). {way_out}") from error
    fault = misfit(result, shape)
    if fault:
        raise OutputError(f"{path} was changed by hand: {fault}. {way_out}")
    return result


def misfit(value: Any, shape: Shape, where: str = "") -> str:
    """Describe the first part of `value` that does not match the shape; "" if all of it does."""
    named = where or "the file"
    if isinstance(shape, tuple):
        faults = [misfit(value, each, where) for each in shape]
        return "" if not all(faults) else faults[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{named} is {_kind(value)}, not a list"
        return next(filter(None, (misfit(each, shape[0], f"{where}[{i}]") for i, each in enumerate(value))), "")
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{named} is {_kind(value)}, not an object"
        return _misfit_of_keys(value, shape, where)
    return "" if _is(value, shape) else f"{named} is {_kind(value)}, not {_NAMES.get(shape, shape.__name__)}"


def _misfit_of_keys(value: Mapping[str, Any], shape: Mapping[Any, Any], where: str) -> str:
    if int in shape:
        wrong = [key for key in value if not key.isdigit()]
        if wrong:
            return f"{where or 'the file'} has '{wrong[0]}' where a whole number must be"
    if str in shape or int in shape:
        known = {key: shape.get(str, shape.get(int)) for key in value}
    else:
        known = {key.removesuffix("?"): inner for key, inner in shape.items()}
        missing = [key for key in shape if not key.endswith("?") and key not in value]
        if missing:
            return f"{where or 'the file'} lacks '{missing[0]}'"
    faults = (misfit(value[key], inner, f"{where}.{key}" if where else key) for key, inner in known.items()
              if key in value)  # fmt: skip
    return next(filter(None, faults), "")


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def _is(value: Any, kind: type) -> bool:
    """True if the value has this JSON type: an int is also a float, and a bool is not a number."""
    if kind is object:
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    said = json.dumps(value)
    return said if len(said) <= 40 else f"{said[:37]}..."
