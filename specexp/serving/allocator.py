"""Memory of a server: one arena of glibc for all threads, and garbage collections that do not stop requests.

Requests are read in one set of threads and decoded in another. With an arena for each thread, which is glibc's default,
what one thread frees is not used by the others, and the process grows for thousands of requests: docs/serving.md has
the numbers. One arena for all costs no measurable time here, since Python's threads take turns anyway.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Mapping

M_ARENA_MAX = -8  # of malloc.h
CHOSEN = "MALLOC_ARENA_MAX"  # glibc's own variable: who sets it has decided


def share_one_arena(environment: Mapping[str, str] = os.environ) -> bool:
    """Have all threads that are started from now on use one arena; False where the C library has no such setting, or
    the environment has decided."""
    if environment.get(CHOSEN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1


def freeze_startup() -> None:
    """Take all objects that are alive now out of garbage collection; call it when everything is loaded.

    A full collection of the libraries' 420,000 objects took 0.23 s of a core, in which no request goes on; after this
    it looks at what requests made. The second collection tells Python how few objects are left: it waits with a full
    one until a quarter as many are new, and would wait for 105,000.
    """
    gc.collect()
    gc.freeze()
    gc.collect()
