"""How layers get to the device: on which streams, read ahead from disk in their order, and after a read that failed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from specexp.lm.streaming import transports
from specexp.lm.streaming.layer_stream import BUFFERS, LayerStream, ReadAhead
from specexp.lm.streaming.transports import ALIGNED, CudaTransport, DiskAhead, HostMemory, HostTransport, PackedLayer

Log = list[tuple[Any, ...]]


class Deferred:
    """A read that runs when it is waited for, and not before."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work

    def result(self) -> None:
        if self._work is not None:
            work, self._work = self._work, None
            work()


class AtOnce:
    """A pool whose work is done before `submit` returns."""

    def __init__(self, *_: Any) -> None: ...

    def submit(self, work: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        try:
            done.set_result(work())
        except OSError as error:
            done.set_exception(error)
        return done


class Disk:
    """Layers that can fail to be read; `content` has by buffer what was read into it."""

    def __init__(self) -> None:
        self.content: dict[int, int] = {}
        self.reads: list[int] = []
        self.failing: set[int] = set()

    def read(self, layer: int, buffer: int) -> None:
        self.reads.append(layer)
        self.content[buffer] = -1
        if layer in self.failing:
            raise OSError(f"layer {layer} cannot be read")
        self.content[buffer] = layer


@pytest.mark.parametrize("submit", [Deferred, AtOnce().submit])
def test_layers_in_any_order_are_those_that_were_asked_for(submit: Any) -> None:
    disk, rng = Disk(), random.Random(3)
    ahead = ReadAhead(range(5), 2, disk.read, submit, lambda event: None)
    for number in range(200):
        layer = rng.randrange(5)
        buffer = ahead.take(layer)
        assert disk.content[buffer] == layer
        ahead.copied(layer, buffer, number)


@pytest.mark.parametrize("submit", [Deferred, AtOnce().submit])
def test_a_read_that_fails_does_so_where_its_layer_is_asked_for_and_is_made_again(submit: Any) -> None:
    disk = Disk()
    ahead = ReadAhead(range(4), 2, disk.read, submit, lambda event: None)
    disk.failing = {1}
    ahead.copied(0, ahead.take(0), 0)
    for _ in range(2):
        with pytest.raises(OSError, match="layer 1"):
            ahead.take(1)
    # Layer 1 is read ahead once more, and given up for another one.
    ahead.copied(0, ahead.take(0), 1)
    for layer in (3, 2):
        buffer = ahead.take(layer)
        assert disk.content[buffer] == layer
        ahead.copied(layer, buffer, 2)
    disk.failing = set()
    assert disk.content[ahead.take(1)] == 1


def test_a_reader_in_a_thread_fails_in_the_thread_that_asks() -> None:
    disk = Disk()
    disk.failing = {1}
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(range(3), 2, disk.read, pool.submit, lambda event: None)
        ahead.copied(0, ahead.take(0), 0)
        with pytest.raises(OSError, match="layer 1"):
            ahead.take(1)


class FailingTransport:
    """Copies at once, but for layers that cannot be read."""

    def __init__(self) -> None:
        self.content: dict[int, int] = {}
        self.failing: set[int] = set()

    def copy(self, buffer: int, layer: int, after: Any) -> object:
        if layer in self.failing:
            raise OSError(f"layer {layer} cannot be read")
        self.content[buffer] = layer
        return object()

    def wait_for(self, copied: object) -> None:
        assert copied is not None

    def computed(self) -> object:
        return object()


@pytest.mark.parametrize("failing", range(5))
def test_after_a_read_that_failed_no_layer_computes_with_the_weights_of_another(failing: int) -> None:
    transport = FailingTransport()
    stream = LayerStream(range(5), transport)

    def call() -> list[int]:
        computed = []
        for layer in range(5):
            buffer = stream.begin(layer)
            computed.append(transport.content[buffer])
            stream.end(layer)
        return computed

    for _ in range(2):
        transport.failing = {failing}
        for _ in range(2):
            with pytest.raises(OSError, match=f"layer {failing} cannot"):
                call()
        transport.failing = set()
        assert call() == list(range(5))


SHAPES = {0: [(3, 5), (7,)], 2: [(40, 30), (1,)], 3: [(2, 2), (130,)], 5: [(9, 9), (11,)]}


def values(layer: int, place: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(10 * layer + place))


def packed(layer: int, reads: list[int] | None = None) -> PackedLayer:
    """A layer of two weights; `reads` gets its number when the first one is read."""

    def read(place: int, shape: tuple[int, ...]) -> Tensor:
        if reads is not None and not place:
            reads.append(layer)
        return values(layer, place, shape)

    return PackedLayer.of(
        {
            f"w{place}": (torch.empty(shape, device="meta"), lambda place=place, shape=shape: read(place, shape))  # type: ignore[misc]
            for place, shape in enumerate(SHAPES[layer])
        }
    )


LAYERS = {number: packed(number) for number in SHAPES}


def assert_weights(layer: int, flat: Tensor) -> None:
    for place, shape in enumerate(SHAPES[layer]):
        assert torch.equal(LAYERS[layer].weights[f"w{place}"].view(flat), values(layer, place, shape))


def test_each_weight_is_aligned_in_the_bytes_of_its_layer() -> None:
    """Copies and kernels of a device read from such addresses in the widest pieces."""
    for number, layer in LAYERS.items():
        assert [weight.offset % ALIGNED for weight in layer.weights.values()] == [0, 0]
        needed = [4 * torch.Size(shape).numel() for shape in SHAPES[number]]
        assert layer.weights["w1"].offset >= needed[0]
        assert layer.weights["w1"].offset + needed[1] <= layer.size < sum(needed) + 2 * ALIGNED


def test_layers_on_disk_are_read_one_ahead_and_the_first_one_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "ThreadPoolExecutor", AtOnce)
    reads: list[int] = []
    layers = {number: packed(number, reads) for number in SHAPES}
    source = DiskAhead(layers, list(layers), False, lambda event: None)
    transport = HostTransport(source, layers)
    stream = LayerStream(list(layers), transport)
    order = [*layers, *layers]
    for layer in order:
        assert_weights(layer, transport.buffers[stream.begin(layer)])
        stream.end(layer)
    # The stream sends for one layer more than was computed, and the one after that is read.
    assert reads == [*order, 0, 2]
    assert transport.num_bytes == sum(layers[number].size for number in [*order, 0])


@pytest.mark.parametrize("fails", [False, True])
def test_a_host_buffer_of_layers_on_disk_is_not_read_into_while_it_is_copied(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The wait for a copy's event comes before the read into its buffer, which fails where that wait does."""
    monkeypatch.setattr(transports, "ThreadPoolExecutor", AtOnce)
    waits: list[int] = []

    def wait(event: int) -> None:
        waits.append(event)
        if fails:
            raise OSError("the device failed")

    source = DiskAhead(LAYERS, list(LAYERS), False, wait)
    for event, layer in enumerate([0, 2, 3]):
        if fails and layer == 3:
            with pytest.raises(OSError, match="the device failed"):
                source.take(layer)
            break
        assert_weights(layer, source.take(layer))
        source.copied(layer, event)
    assert waits == ([0] if fails else [0, 1])


class FakeCuda:
    """Streams and events of torch.cuda that note in which order they were given what. Copies are made at once."""

    def __init__(self, buffers: Callable[[], list[Tensor]]) -> None:
        self.log: Log = []
        self.buffers = buffers
        self.current: Any = self.stream("calls")

    def stream(self, name: str) -> Any:
        return SimpleNamespace(name=name, wait_event=lambda event: self.log.append((name, "wait", event.number)))

    def event(self) -> Any:
        made: Any = SimpleNamespace(number=None)

        def record(stream: Any) -> None:
            made.number = sum(1 for each in self.log if each[1] == "record")
            self.log.append((stream.name, "record", made.number))

        made.record = record
        return made

    @contextmanager
    def within(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(list)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: fake.stream("copies"))
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "stream", fake.within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.current)
    copy = Tensor.copy_

    def noted(self: Tensor, other: Tensor, non_blocking: bool = False) -> Tensor:
        if self.dtype == torch.uint8:  # a whole layer
            fake.log.append((fake.current.name, "copy" if non_blocking else "copy and wait", self.numel()))
        return copy(self, other)

    monkeypatch.setattr(Tensor, "copy_", noted)
    return fake


def test_copies_on_their_own_stream_wait_for_the_layer_before_and_calls_wait_for_them(cuda: FakeCuda) -> None:
    transport = CudaTransport(torch.device("cpu"), HostMemory(LAYERS, False), LAYERS)
    assert [len(buffer) for buffer in transport.buffers] == [max(layer.size for layer in LAYERS.values())] * BUFFERS
    first = transport.copy(0, 2, None)
    assert_weights(2, transport.buffers[0])
    transport.wait_for(first)
    computed = transport.computed()
    transport.copy(0, 3, computed)
    assert_weights(3, transport.buffers[0])
    assert cuda.log == [
        ("copies", "copy", LAYERS[2].size), ("copies", "record", 0),
        ("calls", "wait", 0), ("calls", "record", 1),
        ("copies", "wait", 1), ("copies", "copy", LAYERS[3].size), ("copies", "record", 2),
    ]  # fmt: skip


def test_what_is_read_from_disk_next_waits_for_the_event_of_its_buffers_copy(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "ThreadPoolExecutor", AtOnce)
    source = DiskAhead(LAYERS, list(LAYERS), False, lambda event: cuda.log.append(("host", "wait", event.number)))
    transport = CudaTransport(torch.device("cpu"), source, LAYERS)
    for place, layer in enumerate([0, 2, 3]):
        transport.copy(place % 2, layer, None)
        assert_weights(layer, transport.buffers[place % 2])
    assert [each for each in cuda.log if each[1] in ("record", "wait")] == [
        ("copies", "record", 0), ("copies", "record", 1), ("host", "wait", 0), ("copies", "record", 2),
        ("host", "wait", 1),
    ]  # fmt: skip
