"""Records functions of tensors: as CUDA graphs, or by whatever else implements `Capture`. Keeps what was recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from specexp.lm.transfer import Staging

MOST_KEPT = 256  # recordings over the same buffers
Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """Tokens of the device behind ids that the host knows."""

    ids: Sequence[int]
    tokens: Tensor


# What an input is filled with: values of the device; one number for all of it; the host's for its first places.
Given = Tensor | int | Sequence[float] | Behind
Replay = Callable[[], tuple[Tensor, ...]]


class Capture(Protocol):
    """A way of recording a function of tensors."""

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Replay:
        """Record function(*inputs); the replay runs it on the current contents of `inputs` and returns the outputs.

        Recording may run the function. Values that it reads from the host are frozen.
        """
        ...

    def when(self, flag: Tensor, body: Callable[[], None]) -> None:
        """In a function that is being recorded: record that `body` runs if flag[] holds when the replay gets there.

        The body writes in place. It may run although the flag does not hold, where the device cannot skip it.
        """
        ...


@dataclass(slots=True, eq=False)
class Recording:
    """A function, its static inputs, and its replay once captured. It keeps alive the tensors that a graph uses.

    `then` is a function of the caller's that the recording contains, if it does. Recording may run the function, on the
    real cache: if that makes a difference (`moves`), it is recorded with the inputs as they are, which change nothing.
    """

    function: Function
    inputs: Sequence[Tensor]
    replay: Replay | None = None
    then: Callable[..., Tensor] | None = None
    moves: bool = False
    _staging: dict[int, Staging] = field(default_factory=dict)
    _numbers: tuple[list[int], Staging] | None = None  # the inputs that are single numbers, which are copied together

    def fill_all(self, given: Sequence[Given]) -> None:
        """Copy values to the inputs. Nothing is allocated, but when it is done for the first time."""
        assert len(given) == len(self.inputs)
        numbers = [i for i, value in enumerate(given) if isinstance(value, int) and self.inputs[i].numel() == 1]
        if self.replay is None and self._numbers is None and len(numbers) > 1:
            together = self.inputs[numbers[0]].new_zeros(len(numbers))
            parts = {place: together[i : i + 1] for i, place in enumerate(numbers)}
            self.inputs = [parts.get(i, each) for i, each in enumerate(self.inputs)]
            self._numbers = numbers, Staging(together)
        for place, value in enumerate(given):
            if self._numbers is None or place not in self._numbers[0]:
                self.fill(place, value)
        if self._numbers is not None:
            self._numbers[1].copy([given[place] for place in self._numbers[0]])  # type: ignore[misc]

    def fill(self, place: int, value: Given) -> None:
        """Copy values to one input."""
        buffer = self.inputs[place]
        if isinstance(value, int):
            buffer.fill_(value)  # passed as a kernel argument, without a copy from the host
        elif isinstance(value, Tensor):
            buffer[: value.shape[0]].copy_(value)
        elif isinstance(value, Behind):
            self.fill(place, value.ids)
            buffer[len(value.ids) :][: value.tokens.shape[0]].copy_(value.tokens)
        elif len(value) == 1:
            buffer.view(-1)[:1].fill_(value[0])
        else:
            if place not in self._staging:
                self._staging[place] = Staging(buffer)
            self._staging[place].copy(value)


class Buffered(Protocol):
    """What recordings read and write in place."""

    values: Tensor


class Recordings:
    """Recordings over the same buffers, by key; they become invalid when the buffers are replaced. Of more than
    `MOST_KEPT` the one that was not used for longest is dropped: a server's clients may choose any temperature."""

    def __init__(self, buffers: Buffered, capture: Capture) -> None:
        self._buffers, self._capture, self._values = buffers, capture, buffers.values
        self.kept: dict[Hashable, Recording] = {}
        self.num_captures = 0
        self.num_replays = 0  # of forwards
        self.num_moves = 0  # replays that keep the path of a tree
        self._shared: dict[Hashable, Tensor] = {}

    def shared(self, place: int, like: Tensor, rows: int | None = None) -> Tensor:
        """An input in the form of `like`, or of so many of its rows, in memory that all recordings have which ask for
        this place: each fills it before its replay, and one replay runs at a time. Distributions over a vocabulary are
        large."""
        shape = like.shape if rows is None else (rows, *like.shape[1:])
        key, size = (place, like.dtype), math.prod(shape)
        if key not in self._shared or self._shared[key].numel() < size:  # earlier recordings keep what they have
            self._shared[key] = like.new_zeros(1 << max(0, size - 1).bit_length())
        return self._shared[key][:size].view(shape)

    def answer(self, key: Hashable, build: Callable[[], Recording], given: Sequence[Given]) -> tuple[Tensor, ...]:
        """Copy `given` into the inputs of a recording, which is built if it does not exist, and replay it."""
        return self.replayed(key, build, given)[0]

    def replayed(
        self, key: Hashable, build: Callable[[], Recording], given: Sequence[Given]
    ) -> tuple[tuple[Tensor, ...], Recording]:
        """The same, and the recording."""
        if self._buffers.values is not self._values:
            self.kept.clear()
            self._values = self._buffers.values
        recording = self.kept.pop(key, None) or build()
        self.kept[key] = recording  # the last one: that used last
        if len(self.kept) > MOST_KEPT:
            del self.kept[next(iter(self.kept))]
        if recording.replay is None and recording.moves:
            self._record(recording)
        recording.fill_all(given)
        if recording.replay is None:  # after filling the inputs: recording may run the function, on the real cache
            self._record(recording)
        assert recording.replay is not None
        self.num_moves += recording.moves
        self.num_replays += not recording.moves
        return recording.replay(), recording

    def _record(self, recording: Recording) -> None:
        self.num_captures += 1
        recording.replay = self._capture(recording.function, recording.inputs)


class CudaGraphs:
    """Captures CUDA graphs that share one memory pool: they are replayed one at a time.

    Any other graph's replay may overwrite what a graph computes with. Its outputs are therefore copied, within the
    graph, to memory of their own, which only its own next replay overwrites.

    PyTorch frees the pool with the last graph in it, and then nothing can be captured into it: this object therefore
    keeps the first graph alive, even after all recordings are dropped.
    """

    WARM_UPS = 3  # as PyTorch advises: libraries choose kernels and allocate workspaces in the first runs

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: Any = None
        self._skips: bool | None = None  # whether graphs can have conditional nodes here; tried once
        self._capturing = False
        self._stream: Any = None  # of warm-ups and captures: PyTorch's own default would be on one device for all

    def when(self, flag: Tensor, body: Callable[[], None]) -> None:
        if not self._capturing and self._skips is None:
            self._skips = self._tried()
        if not (self._capturing and self._skips):
            body()
            return
        graph = torch.cuda.CUDAGraph.get_currently_capturing_graph()
        graph.begin_capture_to_if_node(flag)  # type: ignore[no-untyped-call]
        try:
            body()
        finally:
            graph.end_capture_to_conditional_node()  # type: ignore[no-untyped-call]

    def _tried(self) -> bool:
        """True if a conditional node can be captured and skips what it should: drivers before CUDA 12.4 have none."""
        flag, count = torch.zeros((), dtype=torch.bool, device=self._device), torch.zeros(1, device=self._device)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._side()):
                capturing = torch.cuda.CUDAGraph.get_currently_capturing_graph()
                capturing.begin_capture_to_if_node(flag)  # type: ignore[no-untyped-call]
                count.add_(1)
                capturing.end_capture_to_conditional_node()  # type: ignore[no-untyped-call]
            graph.replay()
            flag.fill_(True)
            graph.replay()
            return float(count) == 1
        except (AttributeError, RuntimeError):
            return False

    def _side(self) -> Any:
        """A stream of the device, which must be the current one."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return self._stream

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Replay:
        with torch.cuda.device(self._device):
            side, main = self._side(), torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                for _ in range(self.WARM_UPS):
                    outputs = function(*inputs)
            main.wait_stream(side)
            kept = tuple(torch.empty_like(each) for each in outputs)
            graph = torch.cuda.CUDAGraph()
            self._capturing = True
            try:
                pool = self._first.pool() if self._first is not None else None
                with torch.cuda.graph(graph, pool=pool, stream=side):
                    for own, each in zip(kept, function(*inputs), strict=True):
                        own.copy_(each)
            finally:
                self._capturing = False
            if self._first is None:
                self._first = graph

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return kept

        return replay
