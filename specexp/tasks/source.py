"""Reads a task's rows from a JSONL or JSON file, or through the library `datasets` (a hub id, an address, a folder, a
CSV or Parquet file). Returns plain rows, each with the place it came from, and a hash of all of them.

All rows are checked when they are read, from any source: a text with forbidden content is refused with its place,
before any model is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp import reading
from specexp.addresses import mask
from specexp.errors import TaskError, first_line, shown
from specexp.tasks import files
from specexp.tasks.example import Dataset

LINES = (".jsonl", ".ndjson")
TEXTS = {**dict.fromkeys(LINES, files.rows_of_lines), ".json": files.rows_of_document}  # local files, read here
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
    """All rows of a source. `digest` is the SHA-256 of the file, or of the rows if there is no single file."""

    config: DataConfig
    rows: list[Row]
    digest: str

    def dataset(self, name: str) -> Dataset:
        """Describe these rows as the data of the task `name`."""
        return Dataset(name, mask(str(self.config)), self.digest, len(self.rows))

    def unused(self, used: Sequence[str]) -> list[str]:
        """Return a note on the columns that a task does not use, if there are any."""
        names = list(dict.fromkeys(str(name) for row in self.rows for name in row.values))
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
    if _suffix(path) in TEXTS and not path.is_dir():
        return _read_text(config, path)
    return _read_by_library(config, path)


def first_twice(names: Iterable[str]) -> str | None:
    """Return the first name that occurred before, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


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
    content = _content(config, path)
    text = reading.decode(content, str(path), TaskError)
    rows = [Row(*result) for result in TEXTS[_suffix(path)](text, str(path))]
    if not rows:
        raise TaskError(f"{path}: holds no rows; give one JSON object a line.")
    return Rows(config, rows, hashlib.sha256(content).hexdigest())


def _content(config: DataConfig, path: Path) -> bytes:
    """Return the bytes of a local file. Raises TaskError if a subset, split or revision is given: a file has none."""
    content = reading.read_bytes(path, "data file", TaskError, None)
    if more := [name for name in ("subset", "split", "revision") if getattr(config, name)]:
        kind = "JSONL" if _suffix(path) in LINES else _suffix(path).removeprefix(".").upper()
        raise TaskError(f"{path}: {more[0]} is given, but a {kind} file has none; leave it out.")
    return content


def _read_by_library(config: DataConfig, path: Path) -> Rows:
    local = path.exists()
    if not local and config.source.startswith((".", "/", "~")):
        raise TaskError(f"data '{config.source}' does not exist; give a file, a folder, an address or a hub id.")
    if local and _suffix(path) == ".csv" and path.is_file():
        files.check_csv(reading.decode(_content(config, path), str(path), TaskError), str(path))
    result = _loaded(config, path, local)
    rows = [Row(f"{config.source}, row {number}", number, dict(values)) for number, values in enumerate(result, 1)]
    if not rows:
        raise TaskError(f"data '{config}' holds no rows.")
    for row in rows:
        reading.check_value(row.values, row.where, TaskError)
    content = json.dumps([row.values for row in rows], sort_keys=True, default=str)
    return Rows(config, rows, hashlib.sha256(content.encode()).hexdigest())


def _loaded(config: DataConfig, path: Path, local: bool) -> list[dict[str, Any]]:
    """Load a source with the library `datasets`."""
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
        return list(datasets.load_dataset(**more))
    except Exception as error:  # the library raises various errors; its message is passed on, in one line
        if cache := _cache_that_fails(error):
            raise TaskError(f"data '{config}' cannot be loaded: {cache}") from error
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the root cause has the useful message
        words = first_line(error)
        if "corresponds to no data" in words:
            words = "it holds no rows."
        raise TaskError(f"data '{config}' cannot be loaded: {words}") from error


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
