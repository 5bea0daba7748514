"""What a round costs besides its forwards: replays, operations between them, and bytes that are held.

Between rounds, bytes in use are those of PyTorch's CPU allocator, from its profiler, or CUDA's own count. A tape's
replays allocate as a graph's memory pool does not; what a round holds when it has ended does not depend on that.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tape import Tape

ROUND, REPLAY = "a round has ended", "a replay"
Run = Callable[[Callable[..., None]], object]  # calls what it is given after each round


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
                with record_function(REPLAY):
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


@dataclass(frozen=True)
class Memory:
    """At the end of each round of a run: the bytes held, beyond those at its beginning, the most until then, and the
    bytes that were taken from the allocator until then, given back or not, outside of replays."""

    held: list[int]
    most: list[int]
    taken: list[int]

    @classmethod
    def on_cpu(cls, run: Run) -> Memory:
        """By the events of PyTorch's CPU allocator."""

        def note(*_: object) -> None:
            with record_function(ROUND):
                pass

        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            run(note)
        result, now, most, taken, replay_ends = cls([], [], []), 0, 0, 0, 0
        for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
                taken += max(0, event.nbytes()) if event.start_ns() > replay_ends else 0
            elif event.name() == REPLAY:
                replay_ends = max(replay_ends, event.start_ns() + event.duration_ns())
            elif event.name() == ROUND:
                result.held.append(now)
                result.most.append(most)
                result.taken.append(taken)
        return result

    @classmethod
    def on_cuda(cls, run: Run) -> Memory:
        """By PyTorch's counts of what is in use, and of what the driver and the allocator were asked for, ever: the
        replay of a graph asks neither."""
        gc.collect()
        result, start = cls([], [], []), torch.cuda.memory_allocated()

        def note(*_: object) -> None:
            result.held.append(torch.cuda.memory_allocated() - start)
            stats = torch.cuda.memory_stats()
            result.most.append(stats["reserved_bytes.all.allocated"])
            result.taken.append(stats["allocated_bytes.all.allocated"])

        run(note)
        return result
