"""Makes transformers' methods contenders that a benchmark times in the same way as this project's own (timing.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from specexp.benchmark.peers import Peer
from specexp.engine import Engine
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import Timing


@dataclass(frozen=True, slots=True)
class HFContender:
    """One call of transformers; with `most`, it emits only so many tokens."""

    name: str
    prepared: Prepared
    peer: Peer
    most: int | None = None

    @property
    def gamma(self) -> int:
        return self.peer.gamma

    @property
    def temperature(self) -> float:
        return self.peer.temperature

    def time(self, index: int, repeat: int) -> Timing:
        prepared = self.prepared
        ids = prepared.prompts[index]
        limit = Engine(prepared.pair.models).output_limit(ids, prepared.experiment.max_new_tokens)
        return timed(self.peer, ids, self.most or limit, prepared.experiment.seed)


def timed(peer: Peer, ids: Sequence[int], max_new_tokens: int, seed: int) -> Timing:
    """Time one call of transformers."""
    call, target = peer.prepare(ids, max_new_tokens), peer.models["target"]
    with call.ready(seed):
        target.wait()
        start = time.perf_counter()
        result = call.run()
        target.wait()
        seconds = time.perf_counter() - start
    return Timing(call.emitted(result), seconds)
