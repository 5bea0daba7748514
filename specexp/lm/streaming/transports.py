"""How layers get to the device: by copies on a CUDA stream of their own, or on the host itself.

A layer is one run of bytes, in which each weight begins at a multiple of `ALIGNED` bytes: one copy moves all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specexp.lm.streaming.layer_stream import BUFFERS, Event, ReadAhead

ALIGNED = 256
KEPT_FREE = 0.2  # share of the free memory of a device that layers leave for keys, values and activations
Name = str


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a layer: where it is in the layer's bytes, and how to read its values on the host."""

    shape: torch.Size
    dtype: torch.dtype
    offset: int
    read: Callable[[], Tensor]

    def view(self, flat: Tensor) -> Tensor:
        """This weight in the layer's bytes."""
        size = self.shape.numel() * self.dtype.itemsize
        return flat[self.offset : self.offset + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """The weights of a layer by name, and how many bytes they take together."""

    weights: Mapping[Name, Weight]
    size: int

    @classmethod
    def of(cls, parts: Mapping[Name, tuple[Tensor, Callable[[], Tensor]]]) -> PackedLayer:
        """`parts` has for each name a tensor with its shape and dtype, on any device, and what reads its values."""
        weights, offset = {}, 0
        for name, (like, read) in parts.items():
            weights[name] = Weight(like.shape, like.dtype, offset, read)
            size = like.numel() * like.element_size()
            offset += -(-size // ALIGNED) * ALIGNED
        return cls(weights, offset)

    def fill(self, flat: Tensor) -> None:
        """Read all weights into the layer's bytes."""
        for weight in self.weights.values():
            weight.view(flat).copy_(weight.read())


class HostMemory:
    """Layers in host memory, pinned where a CUDA device reads them.

    With `shared`, the first layer's bytes are those of all layers, which must have the same size: for measurements of
    models that the memory does not hold.
    """

    def __init__(self, layers: Mapping[int, PackedLayer], pinned: bool, shared: bool = False) -> None:
        if shared:
            first = next(iter(layers.values()))
            assert {layer.size for layer in layers.values()} == {first.size}, "layers that share bytes differ in size"
            flat = host_bytes(first.size, pinned)
            first.fill(flat)
            self.flat = dict.fromkeys(layers, flat)
            return
        self.flat = {number: host_bytes(layer.size, pinned) for number, layer in layers.items()}
        for number, layer in layers.items():
            layer.fill(self.flat[number])

    def take(self, layer: int) -> Tensor:
        return self.flat[layer]

    def copied(self, layer: int, event: Event) -> None:
        """Nothing is overwritten."""


class DiskAhead:
    """Layers on disk, each read into a host buffer while the one before it is copied to the device."""

    NUM_BUFFERS = 2

    def __init__(
        self, layers: Mapping[int, PackedLayer], order: Sequence[int], pinned: bool, wait: Callable[[Event], None]
    ) -> None:
        most = max(layer.size for layer in layers.values())
        self._flat = [host_bytes(most, pinned) for _ in range(self.NUM_BUFFERS)]
        self._taken: dict[int, int] = {}
        pool = ThreadPoolExecutor(1, "specexp-disk")
        self._ahead = ReadAhead(
            order, self.NUM_BUFFERS, lambda layer, buffer: layers[layer].fill(self._flat[buffer]), pool.submit, wait
        )

    def take(self, layer: int) -> Tensor:
        self._taken[layer] = self._ahead.take(layer)
        return self._flat[self._taken[layer]]

    def copied(self, layer: int, event: Event) -> None:
        self._ahead.copied(layer, self._taken.pop(layer), event)


class CudaTransport:
    """Copies from pinned memory, on a stream of their own."""

    def __init__(self, device: torch.device, source: HostMemory | DiskAhead, layers: Mapping[int, PackedLayer]) -> None:
        self._device, self._source, self._layers = device, source, layers
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        most = max(layer.size for layer in layers.values())
        self.buffers = [torch.empty(most, dtype=torch.uint8, device=device) for _ in range(BUFFERS)]
        self.num_bytes = 0

    def copy(self, buffer: int, layer: int, after: Event | None) -> Event:
        host = self._source.take(layer)
        if after is not None:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            size = self._layers[layer].size
            self.buffers[buffer][:size].copy_(host[:size], non_blocking=True)
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self.num_bytes += size
        self._source.copied(layer, event)
        return event

    def wait_for(self, copied: Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(copied)

    def computed(self) -> Event:
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


class HostTransport:
    """The same on a CPU, where a copy is done when it returns: for machines without CUDA, and for tests."""

    def __init__(self, source: HostMemory | DiskAhead, layers: Mapping[int, PackedLayer]) -> None:
        self._source, self._layers = source, layers
        most = max(layer.size for layer in layers.values())
        self.buffers = [torch.empty(most, dtype=torch.uint8) for _ in range(BUFFERS)]
        self.num_bytes = 0

    def copy(self, buffer: int, layer: int, after: Event | None) -> Event:
        size = self._layers[layer].size
        self.buffers[buffer][:size].copy_(self._source.take(layer)[:size])
        self.num_bytes += size
        self._source.copied(layer, True)
        return True

    def wait_for(self, copied: Event) -> None:
        assert copied

    def computed(self) -> Event:
        return True


def host_bytes(size: int, pinned: bool) -> Tensor:
    """Uninitialized host memory."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


def free_memory(device: torch.device) -> int:
    """Bytes that layers may take on a device: what is free there but for `KEPT_FREE`; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * (1 - KEPT_FREE))
