"""A server as a process of its own: started on a free port, waited for, and ended at last, however the test ends."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # seconds, for a server to come up or to end on a busy machine
SHOWN = 4_000  # characters of the end of a log that an error shows


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_up(url: str) -> bool:
    """True if a GET of this address has status 200; no proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[Any], log: Path, patience: float = PATIENCE
) -> None:  # fmt: skip
    """Wait until a server is ready; an AssertionError with the end of its log says if it ended or is too slow."""
    end = time.monotonic() + patience
    while not ready():
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{end_of(log)}"
        assert time.monotonic() < end, f"the server is not up after {patience:g} s:\n{end_of(log)}"
        time.sleep(0.1)


def end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-SHOWN:]


@contextmanager
def started(
    command: Sequence[str], log: Path, url: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """Run a server in the folder of its log; yields its process once a GET of `url` has status 200."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    try:
        wait_until(lambda: is_up(url), process, log)
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)
