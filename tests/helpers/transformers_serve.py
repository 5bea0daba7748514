"""`transformers serve` on the embedded target, or another model folder, as a process of its own.

It wants the `openai` package, which the Makefile installs in a folder of its own (`make test-served`). It answers
/v1/completions and /v1/chat/completions with text alone: no token ids, no log-probabilities, one prompt a request.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[2] / "specexp/zoo/target"
PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class TransformersServer:
    """A server that is up, with its model loaded."""

    url: str  # http://127.0.0.1:PORT/v1
    model: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, body: dict[str, Any], path: str = "completions") -> dict[str, Any]:
        data = json.dumps({"model": self.model, **body}).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            result: dict[str, Any] = json.load(response)
            return result


@contextmanager
def transformers_serving(folder: Path, model: Path = TARGET, dtype: str = "float32") -> Iterator[TransformersServer]:
    """Run the server on a free port, on the CPU; it is ended at last, however the test ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = folder / "transformers_serve.log"
    arguments = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", dtype]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        server = TransformersServer(f"http://127.0.0.1:{port}/v1", str(model), process, log)
        end = time.monotonic() + PATIENCE
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait(PATIENCE)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
