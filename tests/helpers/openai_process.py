"""A process of `serve` on a free port, and clients of it that use nothing but sockets and http.client."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from helpers.started_server import end_of, is_up, wait_until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0


@dataclass(slots=True)
class ServerProcess:
    """A server that is up."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def ask(
        self, body: Any = None, path: str = "/v1/completions", headers: dict[str, str] | None = None
    ) -> tuple[int, str]:  # fmt: skip
        """Send a request, whose body is JSON unless it is bytes already; a GET without a body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            given = {} if data is None else {"Content-Type": "application/json"}
            connection.request("GET" if data is None else "POST", path, data, {**given, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def stream(self, body: dict[str, Any], path: str = "/v1/completions") -> Iterator[str]:
        """Yield the data of each event, as they come, up to the end of the stream."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            data = json.dumps({**body, "stream": True})
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            held = b""
            while part := response.read1():  # raises where the connection ends in the middle; its lines would not
                *lines, held = (held + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: "):
                        yield line.removeprefix(b"data: ").decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.ask(path="/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}{{"))


@contextmanager
def serving(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """Run `serve` with these arguments; it is ended at last, however the test ends."""
    log = folder / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "entrypoints", "serve", "--port", "0", *arguments], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        assert found, f"{line}{end_of(log)}"
        server = ServerProcess(process, int(found[1]), log)
        wait_until(lambda: is_up(f"http://127.0.0.1:{server.port}/health"), process, log)
        yield server
    finally:
        process.kill()
        process.wait(PATIENCE)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def in_thread(app: Any) -> Iterator[str]:
    """Serve an application of this process from a thread; yields its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + PATIENCE
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
