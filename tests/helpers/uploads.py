"""Uploads of output folders to a store that fails at any write."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import Result
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from entrypoints.upload import command
from helpers.cli_runner import invoke, runs

TOY = [
    "--experiment", "toy_quick", "--methods", "baseline,speculative", "--gamma", "3", "--max-new-tokens", "8",
    "--limit", "2",
]  # fmt: skip
DEAD = "http://127.0.0.1:9"  # the port of `discard`, on which nothing listens
WRITES = ("create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated")


def upload(*arguments: str) -> Result:
    return invoke(command, *(arguments or ("--output", "out")))


@contextmanager
def failing(behind: int, answer_lost: bool = False) -> Iterator[None]:
    """A store that accepts `behind` writes and fails from then on; with `answer_lost`, the first that fails is done."""
    left = behind

    def faulty(real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left >= 0:
                return real(*arguments, **more)
            if left == -1 and answer_lost:
                real(*arguments, **more)
            raise MlflowException("API request to http://user:secret@tracking/api failed with exception: gone\nmore")

        return call

    with mock.patch.multiple(MlflowClient, **{name: faulty(getattr(MlflowClient, name)) for name in WRITES}):
        yield


def held(run: Run, folder: Path) -> dict[str, Any]:
    """All that a run holds and an upload decides on: it must be the same after any number of tries."""
    client, run_id = MlflowClient(), run.info.run_id
    path = folder / run_id
    path.mkdir(parents=True, exist_ok=True)
    files = Path(client.download_artifacts(run_id, "", str(path)))
    metrics = {key: [(m.value, m.timestamp, m.step) for m in client.get_metric_history(run_id, key)]
               for key in run.data.metrics}  # fmt: skip
    tags = {key: value for key, value in run.data.tags.items() if key not in ("mlflow.user", "resumed_from")}
    return {
        "status": run.info.status,
        "name": run.info.run_name,
        "params": run.data.params,
        "tags": {key: value for key, value in tags.items() if not key.startswith("mlflow.source")},
        "metrics": metrics,
        "files": {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()},
        "inputs": [(i.dataset.name, i.dataset.digest, i.dataset.source_type) for i in run.inputs.dataset_inputs],
    }


def all_held(folder: Path) -> dict[str, Any]:
    by_key = {run.data.tags["specexp.key"]: held(run, folder) for run in runs()}
    assert len(by_key) == len(runs()), "a run was made twice"
    return by_key


def undisturbed(output: Path, workplace: Path, empty_store: Path) -> dict[str, Any]:
    """What a second store, which does not fail, gets from a copy of the same folder."""
    home = workplace / "undisturbed"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    shutil.copytree(output, home / "out")
    with mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=f"sqlite:///{home}/mlflow.db"):
        assert upload("--output", str(home / "out")).exit_code == 0
        return all_held(home / "artifacts")


@contextmanager
def answering(status: int, heard: list[str | None] | None = None) -> Iterator[str]:
    """The address of a server that answers everything with this status; `heard` gets each request's authorization."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if heard is not None:
                heard.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
