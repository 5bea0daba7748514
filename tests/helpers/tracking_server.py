"""A separate MLflow tracking server on a free port of this machine: started, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.started_server import free_port, is_up, wait_until


class Server:
    """A server on SQLite that proxies artifacts: the client only sees addresses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTEST_"))}
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db",
            "--serve-artifacts", "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        log = self._folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(lambda: is_up(f"{self.address}/health"), self._process, log)

    def kill(self) -> None:
        """Send SIGKILL, to workers as well: nothing is finished."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
