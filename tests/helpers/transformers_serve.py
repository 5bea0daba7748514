"""`transformers serve` on the embedded target, or another model folder, as a process of its own.

It wants the `openai` package, which the Makefile installs in a folder of its own (`make test-served`). It answers
/v1/completions and /v1/chat/completions with text alone: no token ids, no log-probabilities, one prompt a request.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.started_server import PATIENCE, free_port, started

TARGET = Path(__file__).resolve().parents[2] / "specexp/zoo/target"


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
    """Run the server on a free port, on the CPU."""
    port, log = free_port(), folder / "transformers_serve.log"
    arguments = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", dtype]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", *arguments]
    address = f"http://127.0.0.1:{port}"
    with started(command, log, f"{address}/health", {"HF_HUB_OFFLINE": "1"}) as process:
        yield TransformersServer(f"{address}/v1", str(model), process, log)
