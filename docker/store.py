"""Prints docker/MLproject's mounts of the store that MLflow's addresses name: its folders, at their own paths.

Of a SQLite database these are its own folder and those of the experiments' artifacts; a tracking server needs none, and
the repository stands in. It runs outside, in docker/, as MLflow's shell fills in the command, and needs no MLflow.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

SQLITE = "sqlite:///"


def folders(uri: str, run_id: str) -> list[Path]:
    """The folders to mount; makes the run's own, which Docker would make as root. Raises ValueError."""
    if not uri.startswith(SQLITE):
        return [Path.cwd().parent]
    database = Path(uri.removeprefix(SQLITE))
    if not database.is_absolute():
        raise ValueError(f"'{uri}' is a relative address; inside it would be another: give an absolute one.")
    with closing(sqlite3.connect(database)) as store:
        runs = store.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", [run_id]).fetchall()
        experiments = store.execute("SELECT artifact_location FROM experiments").fetchall()
    for path in _local(runs):
        path.mkdir(parents=True, exist_ok=True)
    found = [database.parent]
    for path in _local(experiments):
        if path.is_dir() and not any(path.is_relative_to(mounted) for mounted in found):
            found.append(path)
    return found


def _local(rows: list[tuple[str]]) -> list[Path]:
    """The addresses that are folders here."""
    parsed = [urlparse(uri) for (uri,) in rows]
    return [Path(unquote(found.path)) for found in parsed if found.scheme in ("", "file") and not found.netloc]


if __name__ == "__main__":
    try:
        print(
            " -v ".join(
                f"{path}:{path}" for path in folders(os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"])
            )
        )
    except (ValueError, sqlite3.Error) as error:
        sys.exit(f"error: {error}")
