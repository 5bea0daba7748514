"""What a round costs besides its forwards: replays, operations between them, and bytes that are held.

Between rounds, bytes in use are those of PyTorch's CPU allocator, from its profiler, or CUDA's own count. A tape's
replays allocate as a graph's memory pool does not; what a round holds when it has ended does not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tape import Tape

ROUND = "a round has ended"


class CountingTape(Tape):
    """A tape that knows whether one of its replays, or a recording, is running."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Any:
        replay = self._marked(super().__call__)(function, inputs)
        return self._marked(replay)

    def _marked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*given: Any) -> Any:
            self.running += 1
            try:
                return call(*given)
            finally:
                self.running -= 1

        return marked


class Between(TorchDispatchMode):
    """Counts the operations outside of recordings that a GPU would be sent: views are not."""

    def __init__(self, tapes: Sequence[CountingTape]) -> None:
        super().__init__()
        self._tapes = tapes
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += not func.is_view and not any(tape.running for tape in self._tapes)
        return func(*args, **(kwargs or {}))


def held_on_cpu(run: Callable[[Callable[..., None]], object]) -> list[int]:
    """Bytes held at the end of each round of `run(note)`, which calls `note` then; relative to its beginning."""

    def note(*_: object) -> None:
        with record_function(ROUND):
            pass

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run(note)
    held, result = 0, []
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
        elif event.name() == ROUND:
            result.append(held)
    return result


def held_on_cuda(run: Callable[[Callable[..., None]], object]) -> list[int]:
    """As `held_on_cpu`, of the current device, and what the driver was asked for meanwhile: nothing, or it is added."""
    result: list[int] = []

    def asked() -> int:
        return int(torch.cuda.memory_stats()["reserved_bytes.all.allocated"])

    start, before = torch.cuda.memory_allocated(), asked()
    run(lambda *_: result.append(torch.cuda.memory_allocated() - start + asked() - before))
    return result
