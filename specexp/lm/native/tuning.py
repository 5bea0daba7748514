"""Measures how many threads are fastest for a native forward on a CPU."""

from __future__ import annotations

import torch

from specexp.lm.native.kv_cache import LEAST, NativeSession, Pool
from specexp.lm.native.native_forward import NativeForward
from specexp.lm.threads import fastest


@torch.inference_mode()
def tune(forward: NativeForward) -> None:
    """Measure which thread counts are fastest for this forward, on a CPU, and use them.

    An invariant forward keeps torch's number: the bits of a result may depend on it.
    """
    if forward.device.type != "cpu" or forward.invariant:
        return
    session = NativeSession(Pool.empty(forward, 1, LEAST), 0)

    def feed(rows: int) -> None:
        session.truncate(0)
        session.feed(torch.zeros(rows, dtype=torch.int64), rows)

    forward.threads = fastest(feed, torch.get_num_threads())
    if forward.beyond is not None:
        forward.beyond.threads = forward.threads
