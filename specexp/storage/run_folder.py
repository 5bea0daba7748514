"""The output folder of an evaluation: checks, locks and reads it, so that one process writes and a run can resume.

config.json        the resolved settings and their hash
records.jsonl      one line per prompt and setting; once it is full, records-0002.jsonl and so on
data.json          where the prompts came from, and their hash
differences.json   outputs that differ from plain decoding's although they must not, and what explains each
judges.json        which judges were used, and what they were made for
failures.json      the prompts that workers died at, and the reasons
environments.json  what was loaded and where it ran, by the name that records refer to
costs.json         measured seconds per call
draft_costs.json   what calls cost in target steps, by which drafts that adapt (gamma auto) end
shares.json        how the time divides, from a separate instrumented run
memory.json        peak bytes of the process and of each CUDA device, also by method
mlflow.json        the folder's unique id for its MLflow runs, the run ids, and whether all of them were sent
upload.json        the contents of these runs, once all is done; `upload/` has the files made only for them
summary.json       metrics by run name, once all is done
report.html        the report on all results
figures/           the report's figures
tokens.json        chosen prompts, with the source of each token; tokens.html shows it; tokens.jsonl while it is made
progress.jsonl     what advise or benchmark has measured so far
trees-NAME.png     how deep a tree method's accepted paths go, and by which of the draft's choices
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from specexp.addresses import mask
from specexp.errors import OutputError
from specexp.storage import files, run_plan
from specexp.storage.records import RecordFile

LOCK, CONFIG, STATE, PLAN = ".lock", "config.json", "mlflow.json", "upload.json"
RECORDS = "records.jsonl"  # and the files after it
_SECONDS = {int: float}
_AGAIN = "Put it back as it was, or remove it: it is made again."
# The shape that each file of a folder must have to be read again, and the remedy if it does not.
SHAPES: dict[str, tuple[files.Shape, str]] = {
    CONFIG: ({"settings_hash?": str}, "Put it back as it was, or name another output folder."),
    STATE: (
        {"uid?": str, "run_id?": str, "runs?": {str: str}, "sent?": bool, "store?": str},
        "Put it back as it was, or remove it: runs are then created again, in addition to those in the store.",
    ),
    PLAN: (run_plan.SHAPE, "Put it back as it was, or remove it and go on with the command that made it and --resume."),
    "costs.json": (
        ({"context": float, "draft": (float, type(None)), "target": _SECONDS, "tree_draft": _SECONDS,
          "tree_target": _SECONDS}, type(None)), _AGAIN,
    ),
    "draft_costs.json": ({"draft": float, "target": [float]}, _AGAIN),
    "shares.json": ({"num_prompts": int, "max_new_tokens": int, "seconds": {str: {str: float}}}, _AGAIN),
    "memory.json": ({"all": {str: int}, "methods": {str: {str: int}}}, _AGAIN),
    "environments.json": (
        {str: {}}, "Put it back as it was, or remove it: where earlier records were made is then not known any more.",
    ),
    "data.json": ({"name": str, "source": str, "digest": str, "num_rows": int}, _AGAIN),
    "judges.json": ({str: {"weights": str}}, _AGAIN),
    "inputs.json": ({"data": str, "target": str, "draft": str, "tokenizer": str}, _AGAIN),
    "checks.json": (
        {"environment": str, "checks": [{"name": str, "verdict": str, "sentence": str, "numbers": {}, "details": {}}]},
        _AGAIN,
    ),
    "failures.json": ([{"prompt_id": str, "deaths": [str], "repeat": int}], _AGAIN),
    "differences.json": ([{"prompt_id": str, "turn": int, "label": str, "repeat": int}], _AGAIN),
    "tokens.json": ({"prompts": [{"prompt_id": str}]}, _AGAIN),
}  # fmt: skip


class Settings(Protocol):
    """The settings that a folder was made with."""

    @property
    def hash(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


class OutputFolder:
    """One output folder. The constructor checks it; nothing is written before `open`."""

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
            for name in SHAPES:  # report broken files before any model is loaded
                self.read_json(name)
        nearest = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise OutputError(f"output '{self.path}' cannot be made: '{nearest}' is not a folder that can be written.")

    @contextmanager
    def open(self) -> Iterator[RecordFile]:
        """Lock the folder for this process, and yield its records."""
        with self.hold():
            records = RecordFile(self.path / RECORDS, self._settings.hash)
            records.repair()
            with closing(records):
                yield records

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Create the folder, lock it for this process, and write config.json."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"output '{self.path}' cannot be made: {error.strerror or error}.") from error
        with locked(self.path):
            self.write_json(CONFIG, {**masked(self._settings.as_dict()), "settings_hash": self._settings.hash})
            yield

    def read_json(self, name: str) -> Any:
        """Read a JSON file of this folder; None if it does not exist. Raises OutputError if it is broken."""
        return read_json(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        files.write_json(self.path / name, value)

    def _check_owner(self) -> None:
        before: dict[str, Any] = {}
        records = self.path / RECORDS
        try:
            before = self.read_json(CONFIG) or {}
        except OutputError as error:
            if records.exists():  # its lines also name the configuration
                raise OutputError(f"{error} Or remove it: it is written again from the settings given.") from error
            raise
        result = before.get("settings_hash")
        if (
            result is None
            and not records.exists()
            and any(p.name not in (LOCK, f"{CONFIG}.partial") for p in self.path.iterdir())
        ):
            raise OutputError(f"'{self.path}' was not made by {self._maker}; name another output folder.")
        if result is not None and result != self._settings.hash:
            changed = differences(before, json.loads(json.dumps(masked(self._settings.as_dict()))))
            changed = changed or "it was made by another version"
            raise OutputError(
                f"'{self.path}' belongs to configuration {result}, this one is {self._settings.hash}"
                f" ({changed});"
                " resume with the settings it was started with, or name another output folder."
            )
        RecordFile(records, self._settings.hash)


def differences(before: Any, now: Any, most: int = 3) -> str:
    """The settings that differ, as text: `target.chat_template was "none", is "auto"; limit was 5, is 8`.

    A setting that only one of them has, from another version, is left out.
    """
    result = list(_differing("", before, now))
    more = f"; {len(result) - most} more" if len(result) > most else ""
    return "; ".join(f"{name} was {was:.60}, is {has:.60}" for name, was, has in result[:most]) + more


def _differing(name: str, before: Any, now: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if key in before:
                yield from _differing(f"{name}.{key}" if name else key, before[key], now[key])
    elif before != now:
        yield name, json.dumps(before, ensure_ascii=False), json.dumps(now, ensure_ascii=False)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock an existing output folder for this process."""
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
    """Read a JSON file of an output folder; None if it does not exist. Raises OutputError if it is broken."""
    shape, way_out = SHAPES.get(path.name, (object, _AGAIN))
    return files.read_json(path, shape, way_out)


def uid_of(path: Path) -> str:
    """The unique id that identifies this output folder's MLflow runs; created if missing. Raises OutputError."""
    state = read_json(path / STATE) or {}
    if "uid" not in state:
        state = {**state, "uid": uuid.uuid4().hex}
        files.write_json(path / STATE, state)
    return str(state["uid"])


def masked(value: Any) -> Any:
    """A JSON value in which `mask` has removed the credentials from all texts."""
    if isinstance(value, dict):
        return {key: masked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked(each) for each in value]
    return mask(value) if isinstance(value, str) else value
