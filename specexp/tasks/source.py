"""Reads a task's rows from a JSONL or JSON file, or through the library `datasets` (a hub id, an address, a folder, a
CSV or Parquet file). Returns plain rows, each with the place it came from, and a hash of all of them.

All rows are checked when they are read, from any source: a text with forbidden content is refused with its place,
before any model is loaded. They stay in their file, or in the library's: a row is read again when it is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import shutil
import stat
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from specexp import reading
from specexp.addresses import mask
from specexp.errors import TaskError, first_line, shown
from specexp.sequences.file_lines import FileLines
from specexp.sequences.lazy import LazySequence
from specexp.tasks import files
from specexp.tasks.example import Dataset

LINES = (".jsonl", ".ndjson")
DOCUMENT = ".json"
BUILDERS = {".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`source` is a file, folder, address or hub id; `subset`, `split` and `revision` are as in `datasets`."""

    source: str
    subset: str = ""
    split: str = ""
    revision: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.source, self.subset, self.split) if part)


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its place, for error messages."""

    where: str
    number: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a source. `digest` is the SHA-256 of the file, or of the rows if there is no single file; `columns`
    are the names in the rows, in the order in which they come."""

    config: DataConfig
    rows: LazySequence[Row]
    digest: str
    columns: tuple[str, ...]

    def dataset(self, name: str) -> Dataset:
        """Describe these rows as the data of the task `name`."""
        return Dataset(name, mask(str(self.config)), self.digest, len(self.rows))

    def unused(self, used: Sequence[str]) -> list[str]:
        """Return a note on the columns that a task does not use, if there are any."""
        names = list(dict.fromkeys(self.columns))
        extra = [name for name in names if name not in used]
        if not extra:
            return []
        missing = [name for name in used if name not in names]
        shown = []
        for name in extra:
            close = difflib.get_close_matches(name, missing, n=1)
            shown.append(repr(name) + (f" (did you mean '{close[0]}'?)" if close else ""))
        return [
            f"data '{mask(str(self.config))}': columns {', '.join(shown)} are not used. Used are: {', '.join(used)}."
        ]


def read(config: DataConfig) -> Rows:
    """Read all rows. Raises TaskError that names the file and line, or gives the error of `datasets`."""
    if "://" in config.source:
        return _read_by_library(config, Path(config.source))
    path = reading.path_of(config.source, "data", TaskError)
    if _suffix(path) in (*LINES, DOCUMENT) and not path.is_dir():
        return _read_text(config, path)
    return _read_by_library(config, path)


def text_of(row: Row, key: str) -> str:
    """Return a row's text, which must not be empty. Raises TaskError."""
    value = row.values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{row.where}: '{key}' must be a text that is not empty, got {shown(value)}.")
    return value.removeprefix(reading.BOM)


def name_of(row: Row, keys: Sequence[str], default: str) -> str:
    """Return a row's id by the first of `keys` that it has. Null counts as missing: in a table they are the same."""
    for key in keys:
        value = row.values.get(key)
        if value is None or value != value:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a column of integers with a missing value is read as floats
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number and not (isinstance(value, str) and value.strip()):
            raise TaskError(f"{row.where}: '{key}' is {shown(value)}; it must be a text or a number, or be left out.")
        return str(value)
    return default


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _read_text(config: DataConfig, path: Path) -> Rows:
    with _opened(config, path) as file:
        if _suffix(path) == DOCUMENT:
            content = file.read()
            rows = files.rows_of_document(reading.decode(content, str(path), TaskError), str(path))
            if rows is not None:
                return _read_document(config, path, rows, hashlib.sha256(content).hexdigest())
            file.seek(0)
        return _read_lines(config, path, file)


def _read_lines(config: DataConfig, path: Path, file: BinaryIO) -> Rows:
    """Read a file that has one object per line, and keep where each of them is."""
    digest, columns = hashlib.sha256(), dict[str, None]()
    kept, numbers = FileLines(file, f"data '{path}'", TaskError), array("I")
    for number, (offset, line, text) in enumerate(files.lines_of(file, str(path)), 1):
        digest.update(line)
        if (values := files.row_of(text, f"{path}, line {number}")) is not None:
            kept.add(offset, line)
            numbers.append(number)
            columns.update(dict.fromkeys(values))
    if not len(kept):
        raise TaskError(f"{path}: holds no rows; give one JSON object a line.")
    return _in_file(config, kept, f"{path}, line", numbers.__getitem__, digest.hexdigest(), tuple(columns))


def _read_document(config: DataConfig, path: Path, rows: Sequence[dict[str, Any]], digest: str) -> Rows:
    """Keep the rows of a document, which have no lines of their own, as lines of a temporary file."""
    if not rows:
        raise TaskError(f"{path}: holds no rows; give one JSON object a line.")
    columns = dict[str, None]()
    with _scratch(path) as file:
        kept, offset = FileLines(file, f"data '{path}'", TaskError), 0
        for values in rows:
            line = json.dumps(values).encode()
            file.write(line)
            kept.add(offset, line)
            offset += len(line)
            columns.update(dict.fromkeys(values))
        file.flush()
    return _in_file(config, kept, f"{path}, row", lambda index: index + 1, digest, tuple(columns))


def _in_file(
    config: DataConfig, kept: FileLines, where: str, number: Callable[[int], int], digest: str, columns: tuple[str, ...]
) -> Rows:  # fmt: skip
    def row(index: int) -> Row:
        return Row(f"{where} {number(index)}", number(index), files.read_again(kept[index]))

    return Rows(config, LazySequence(row, len(kept)), digest, columns)


@contextmanager
def _opened(config: DataConfig, path: Path) -> Iterator[BinaryIO]:
    """Open a local file; what is no file, such as a pipe, is copied first. Raises TaskError, also if a subset, split or
    revision is given: a file has none."""
    try:
        with path.open("rb") as file:
            if more := [name for name in ("subset", "split", "revision") if getattr(config, name)]:
                kind = "JSONL" if _suffix(path) in LINES else _suffix(path).removeprefix(".").upper()
                raise TaskError(f"{path}: {more[0]} is given, but a {kind} file has none; leave it out.")
            if stat.S_ISREG(path.stat().st_mode):
                yield file
                return
            with _scratch(path) as copied:
                shutil.copyfileobj(file, copied)
                copied.seek(0)
                yield copied
    except OSError as why:
        raise TaskError(f"data file '{path}' cannot be read: {why.strerror or why}.") from why


@contextmanager
def _scratch(path: Path) -> Iterator[BinaryIO]:
    """Open a file that has no name, and is gone when nobody reads from it."""
    try:
        with tempfile.TemporaryFile() as file:
            yield cast(BinaryIO, file)
    except OSError as why:
        raise TaskError(
            f"the rows of '{path}' cannot be kept in the temporary folder {tempfile.gettempdir()} ({why.strerror});"
            " name another one in TMPDIR, or give a file with one JSON object a line."
        ) from why


def _read_by_library(config: DataConfig, path: Path) -> Rows:
    local = path.exists()
    if not local and config.source.startswith((".", "/", "~")):
        raise TaskError(f"data '{config.source}' does not exist; give a file, a folder, an address or a hub id.")
    if local and _suffix(path) == ".csv" and path.is_file():
        with _opened(config, path) as file:
            files.check_csv(file, str(path))
    result = _loaded(config, path, local)

    def row(index: int, values: Any = None) -> Row:
        return Row(f"{config.source}, row {index + 1}", index + 1, dict(result[index] if values is None else values))

    def rows() -> Iterator[Row]:
        try:
            yield from (row(index, values) for index, values in enumerate(result))
        except Exception as error:
            raise _not_loaded(config, error) from error

    if not len(result):
        raise TaskError(f"data '{config}' holds no rows.")
    # The hash is that of all rows as one JSON list.
    digest, columns = hashlib.sha256(b"["), dict[str, None]()
    for each in rows():
        reading.check_value(each.values, each.where, TaskError)
        text = json.dumps(each.values, sort_keys=True, default=str)
        digest.update((text if each.number == 1 else f", {text}").encode())
        columns.update(dict.fromkeys(map(str, each.values)))
    digest.update(b"]")
    return Rows(config, LazySequence(row, len(result), rows), digest.hexdigest(), tuple(columns))


def _loaded(config: DataConfig, path: Path, local: bool) -> Sequence[dict[str, Any]]:
    """Load a source with the library `datasets`, whose rows stay in its cache."""
    import datasets  # imports pandas and pyarrow, so only if needed

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are reported below, in one line
    suffix = _suffix(Path(config.source.split("?")[0]))
    builder = "json" if suffix in LINES else BUILDERS.get(suffix)
    more: dict[str, Any] = {"split": config.split or "train"}
    if builder:
        more |= {"path": builder, "data_files": {more["split"]: str(path) if local else config.source}}
    else:
        more |= {"path": str(path) if local else config.source, "revision": config.revision or None}
        more |= {"name": config.subset or None}
    try:
        loaded: Sequence[dict[str, Any]] = datasets.load_dataset(**more)
        return loaded
    except Exception as error:
        raise _not_loaded(config, error) from error


def _not_loaded(config: DataConfig, error: Exception) -> TaskError:
    """Say in one line what the library has raised, which can be anything."""
    if cache := _cache_that_fails(error):
        return TaskError(f"data '{config}' cannot be loaded: {cache}")
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the root cause has the useful message
    words = first_line(error)
    if "corresponds to no data" in words:
        words = "it holds no rows."
    return TaskError(f"data '{config}' cannot be loaded: {words}")


def _cache_that_fails(error: BaseException | None) -> str | None:
    """Return where the library's cache is and how to name another one, if an error is about that folder, else None."""
    import datasets

    cache = str(datasets.config.HF_DATASETS_CACHE)
    while error is not None:
        name = getattr(error, "filename", None)
        of_cache = isinstance(name, str) and (name.startswith(cache) or cache.startswith(name.rstrip("/") + "/"))
        if isinstance(error, OSError) and of_cache:
            reason = error.strerror or error
            return (
                f"the cache of the library datasets, '{cache}', cannot be written ({reason}); name another folder in"
                " HF_DATASETS_CACHE, or in HF_HOME."
            )
        error = error.__cause__ or error.__context__
    return None
