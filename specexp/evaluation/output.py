"""The folder an evaluation writes: who may write there, and what it finds there when it resumes.

config.json        the resolved settings and their hash
records.jsonl      one line per prompt and setting
data.json          where the prompts came from, and their hash
differences.json   outputs that are not plain decoding's though they must be, and what explains each
judges.json        which judges decoded, and what they were made for
environments.json  what was loaded and where it ran, by the name that records give it
costs.json         measured seconds per call
shares.json        where the time goes, by an instrumented run of its own
memory.json        peak bytes of the process, and of each CUDA device, by method too
mlflow.json        what names the MLflow runs made for it, their ids, and whether all of them were sent
upload.json        what these runs hold, once all is done; `upload/` has the files made for them alone
summary.json       metrics by run name, once all is done
report.html        what all this comes to
figures/           the report's figures
tokens.json        chosen prompts, with whom each token came from; tokens.html shows it; tokens.jsonl while it is made
progress.jsonl     what advise or benchmark has measured so far
trees-NAME.png     how deep a tree method's accepted paths go, and by which of the draft's choices
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from specexp.errors import OutputError
from specexp.evaluation.records import RecordFile, write_whole

LOCK = ".lock"


class Settings(Protocol):
    """What a folder was made with."""

    @property
    def hash(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


class OutputFolder:
    """Checks at construction, writes nothing before `open`."""

    def __init__(self, path: Path, settings: Settings, resume: bool, maker: str = "evaluate") -> None:
        self.path = path
        self._settings = settings
        self._maker = maker
        try:
            self._look(resume)
        except OSError as error:
            raise OutputError(
                f"output '{path}' cannot be used: {error.strerror or error}; name another one."
            ) from error

    def _look(self, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"output '{self.path}' is not a folder; name another one.")
        taken = self.path.is_dir() and any(self.path.iterdir())
        if taken and not resume:
            raise OutputError(
                f"output folder '{self.path}' exists; give resume=true to go on there, or another output."
            )
        if taken:
            self._check_owner()
        nearest = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise OutputError(f"output '{self.path}' cannot be made: '{nearest}' is not a folder that can be written.")

    @contextmanager
    def open(self) -> Iterator[RecordFile]:
        """Hold the folder for this process, with the records that stand in it."""
        with self.hold():
            records = RecordFile(self.path / "records.jsonl", self._settings.hash)
            records.repair()
            with closing(records):
                yield records

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder for this process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"output '{self.path}' cannot be made: {error.strerror or error}.") from error
        with locked(self.path):
            self.write_json("config.json", {**self._settings.as_dict(), "settings_hash": self._settings.hash})
            yield

    def read_json(self, name: str) -> Any:
        """A JSON file of this folder, or None."""
        return read_json(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)

    def _check_owner(self) -> None:
        before: dict[str, Any] = {}
        try:
            before = self.read_json("config.json") or {}
            found = before.get("settings_hash")
        except (ValueError, AttributeError):
            before, found = {}, "unreadable"
        records = self.path / "records.jsonl"
        if (
            found is None
            and not records.exists()
            and any(p.name not in (LOCK, "config.json.partial") for p in self.path.iterdir())
        ):
            raise OutputError(f"'{self.path}' was not made by {self._maker}; name another output folder.")
        if found is not None and found != self._settings.hash:
            changed = differences(before, json.loads(json.dumps(self._settings.as_dict())))
            changed = changed or "it was made by another version"
            raise OutputError(
                f"'{self.path}' belongs to configuration {found}, this one is {self._settings.hash}"
                f" ({changed});"
                " resume with the settings it was started with, or name another output folder."
            )
        RecordFile(records, self._settings.hash)


def differences(before: Any, now: Any, most: int = 3) -> str:
    """`target.chat_template was "none", is "auto"; limit was 5, is 8`: settings of one JSON object and another.

    What one of them does not have, a setting of another version, is left out.
    """
    found = list(_differing("", before, now))
    more = f"; {len(found) - most} more" if len(found) > most else ""
    return "; ".join(f"{name} was {was:.60}, is {has:.60}" for name, was, has in found[:most]) + more


def _differing(name: str, before: Any, now: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if key in before:
                yield from _differing(f"{name}.{key}" if name else key, before[key], now[key])
    elif before != now:
        yield name, json.dumps(before, ensure_ascii=False), json.dumps(now, ensure_ascii=False)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an output folder that exists for this process."""
    try:
        lock = (path / LOCK).open("w")
    except OSError as error:
        raise OutputError(f"output '{path}' cannot be made: {error.strerror or error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"output folder '{path}' is in use by another run; wait for it or stop it.") from error
        yield


def read_json(path: Path) -> Any:
    """What a JSON file holds, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
