"""Where a task's rows come from: a JSONL file, or whatever the library `datasets` reads (a hub id, an address, a
folder, a CSV or Parquet file). Plain rows out, each with the place it came from, and a hash of the whole.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp.errors import TaskError
from specexp.tasks.example import Dataset

LINES = (".jsonl", ".ndjson")
BUILDERS = {".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`source` is a file, folder, address or hub id; `subset`, `split` and `revision` are what `datasets` calls so."""

    source: str
    subset: str = ""
    split: str = ""
    revision: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.source, self.subset, self.split) if part)


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, for messages."""

    where: str
    number: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a source. `digest` is the SHA-256 of the file, or of the rows where there is no single file."""

    config: DataConfig
    rows: list[Row]
    digest: str

    def dataset(self, name: str) -> Dataset:
        """These rows as the data of the task `name`."""
        return Dataset(name, str(self.config), self.digest, len(self.rows))

    def unused(self, used: Sequence[str]) -> list[str]:
        """A note on the columns that a task does not use, if there are any."""
        names = list(dict.fromkeys(str(name) for row in self.rows for name in row.values))
        extra = [name for name in names if name not in used]
        if not extra:
            return []
        missing = [name for name in used if name not in names]
        shown = []
        for name in extra:
            close = difflib.get_close_matches(name, missing, n=1)
            shown.append(repr(name) + (f" (did you mean '{close[0]}'?)" if close else ""))
        return [f"data '{self.config}': columns {', '.join(shown)} are not used. Used are: {', '.join(used)}."]


def read(config: DataConfig) -> Rows:
    """All rows. Raises TaskError that names the file and line, or what `datasets` says of the source."""
    path = Path(config.source).expanduser()
    if path.suffix in LINES and "://" not in config.source:
        return _read_lines(config, path)
    return _read_by_library(config, path)


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that was given before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def text_of(row: Row, key: str) -> str:
    """A row's text that is not empty; raises TaskError."""
    value = row.values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{row.where}: '{key}' must be a text that is not empty, got {value!r}.")
    return value


def _read_lines(config: DataConfig, path: Path) -> Rows:
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8").split("\n")  # and at no other sign: JSON texts may hold those
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"data file '{path}' cannot be read: {error.strerror or error}.") from error
    if more := [name for name in ("subset", "split", "revision") if getattr(config, name)]:
        raise TaskError(f"{path}: {more[0]} is given, but a JSONL file has none; leave it out.")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{where}: not JSON ({error}).") from error
        if not isinstance(values, dict):
            raise TaskError(f"{where}: must be an object, got {type(values).__name__}.")
        rows.append(Row(where, number, values))
    if not rows:
        raise TaskError(f"{path}: holds no rows; give one JSON object a line.")
    return Rows(config, rows, hashlib.sha256(content).hexdigest())


def _read_by_library(config: DataConfig, path: Path) -> Rows:
    local = path.exists()
    if not local and config.source.startswith((".", "/", "~")):
        raise TaskError(f"data '{config.source}' does not exist; give a file, a folder, an address or a hub id.")
    import datasets  # pandas and pyarrow come along: only for those who ask

    datasets.disable_progress_bars()
    builder = BUILDERS.get(Path(config.source.split("?")[0]).suffix)
    if config.source.split("?")[0].endswith(LINES):
        builder = "json"
    more: dict[str, Any] = {"split": config.split or "train"}
    if builder:
        more |= {"path": builder, "data_files": {more["split"]: str(path) if local else config.source}}
    else:
        more |= {"path": str(path) if local else config.source, "revision": config.revision or None}
        more |= {"name": config.subset or None}
    try:
        found = datasets.load_dataset(**more)
    except Exception as error:  # whatever the library makes of a source: its own words, in one line
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TaskError(f"data '{config}' cannot be loaded: {words}") from error
    rows = [Row(f"{config.source}, row {number}", number, dict(values)) for number, values in enumerate(found, 1)]
    if not rows:
        raise TaskError(f"data '{config}' holds no rows.")
    content = json.dumps([row.values for row in rows], sort_keys=True, default=str)
    return Rows(config, rows, hashlib.sha256(content.encode()).hexdigest())
