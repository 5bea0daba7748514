"""The folder an evaluation writes: who may write there, and what it finds there when it resumes.

config.json     the resolved settings and their hash
records.jsonl   one line per prompt and setting
costs.json      measured seconds per call
mlflow.json     the MLflow runs made for it
summary.json    metrics by setting, once all is done
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any, TextIO

from specexp.config import Experiment
from specexp.errors import OutputError
from specexp.evaluation.records import RecordFile, write_whole


class OutputFolder:
    """Checks at construction, writes nothing before `open`."""

    def __init__(self, path: Path, experiment: Experiment, resume: bool) -> None:
        self.path = path
        self._experiment = experiment
        self._lock: TextIO | None = None
        if path.exists() and not path.is_dir():
            raise OutputError(f"output '{path}' is not a folder; name another one.")
        taken = path.is_dir() and any(path.iterdir())
        if taken and not resume:
            raise OutputError(f"output folder '{path}' exists; give resume=true to go on there, or another output.")
        if taken:
            self._check_owner()

    def open(self) -> RecordFile:
        """Take the folder for this process, and read the records that stand in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"output folder '{self.path}' is in use by another run; wait for it or stop it."
            ) from error
        config = {**self._experiment.as_dict(), "settings_hash": self._experiment.hash}
        self.write_json("config.json", config)
        return RecordFile(self.path / "records.jsonl", self._experiment.hash)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read_json(self, name: str) -> Any:
        """A JSON file of this folder, or None."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_json(self, name: str, value: Any) -> None:
        write_whole(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def _check_owner(self) -> None:
        try:
            found = (self.read_json("config.json") or {}).get("settings_hash")
        except (ValueError, AttributeError):
            found = "unreadable"
        records = self.path / "records.jsonl"
        if found is None and not records.exists() and any(p.name != ".lock" for p in self.path.iterdir()):
            raise OutputError(f"'{self.path}' was not made by evaluate; name another output folder.")
        if found is not None and found != self._experiment.hash:
            raise OutputError(
                f"'{self.path}' belongs to configuration {found}, this one is {self._experiment.hash};"
                " resume with the settings it was started with, or name another output folder."
            )
        RecordFile(records, self._experiment.hash)
