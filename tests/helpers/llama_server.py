"""llama.cpp's own server, of the wheel `xllamacpp`, as a process: plain, with a draft model, or with prompt lookup.

The Makefile installs it in a folder of its own (`make test-served`). Its streams have token ids, log-probabilities of
all tokens but accepted drafts, usage and `timings`; its /metrics count drafts and rounds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.started_server import free_port, started

TESTS = Path(__file__).resolve().parents[1]
MODEL = "m"
SLOTS, CONTEXT = 4, 1024  # requests at once, and tokens of each
DRAFTED = 4


@contextmanager
def llama_serving(folder: Path, model: Path, draft: Path | None = None, lookup: bool = False) -> Iterator[str]:
    """Run the server on a free port; yields its address.

    With `draft` it drafts by that model and samples its drafts; with `lookup`, by the last two tokens' earlier
    occurrence.
    """
    port = free_port()
    settings = {"model": str(model), "draft": str(draft or ""), "lookup": lookup, "port": port}
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "helpers.llama_server", json.dumps(settings)]
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with started(command, folder / "llama_server.log", f"{address}/health", {"PYTHONPATH": paths}):
        yield address


def main(settings: dict[str, Any]) -> None:
    """Serve until the process is ended."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = settings["model"], {MODEL}
    params.port, params.endpoint_metrics = settings["port"], True
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
    kinds, speculative = xllamacpp.common_speculative_type, params.speculative
    caches = [params]
    threads = [params.cpuparams, params.cpuparams_batch]
    if settings["draft"]:
        draft = speculative.draft
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        draft.mparams.path, draft.n_max, draft.probabilistic = settings["draft"], DRAFTED, True
        caches.append(draft)
        threads += [draft.cpuparams, draft.cpuparams_batch]
    elif settings["lookup"]:
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        speculative.ngram_simple.size_n, speculative.ngram_simple.size_m = 2, DRAFTED
    for each in caches:  # as exact as the weights: with half precision, near ties would be others
        each.cache_type_k = each.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    for each in threads:
        each.n_threads = 1
    _server = xllamacpp.Server(params)  # serves from threads of its own, as long as it lives
    signal.pause()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
