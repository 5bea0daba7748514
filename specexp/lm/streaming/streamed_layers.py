"""Has the layers of a module that accelerate offloaded come to the device by a `LayerStream` in place of its hooks.

accelerate reads the files and says where each weight is; its hooks of a layer's parts then find nothing to move.
Between calls the parameters are what they were, without values; those of resident layers stay on the device for good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specexp.lm.streaming.layer_stream import LayerStream, resident_layers
from specexp.lm.streaming.transports import CudaTransport, DiskAhead, HostMemory, HostTransport, PackedLayer


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a weight belongs: a part of a layer, and the name of its parameter there."""

    part: Any
    name: str
    empty: Any  # the parameter without values


class StreamedLayers:
    """The offloaded layers of a module, `memory` bytes of which stay on the device.

    `shared`: all that come have the first one's bytes in host memory (`HostMemory`).
    """

    def __init__(
        self, layers: Sequence[Any], device: torch.device, on_disk: bool, memory: int, shared: bool = False
    ) -> None:
        self.device, self._slots = device, [slots_of(layer) for layer in layers]
        packed = [PackedLayer.of({name: (s.empty, reader(s)) for name, s in each.items()}) for each in self._slots]
        self.resident = resident_layers([each.size for each in packed], memory)
        streamed = [number for number in range(len(layers)) if number not in self.resident]
        for number in self.resident:
            self._place(number, packed[number])
        for slots in self._slots:
            for slot in slots.values():
                slot.part._hf_hook.offload = False  # nothing is left for it to move
        self.transport: CudaTransport | HostTransport | None = None
        self.stream: LayerStream | None = None
        self.coming = coming = {number: packed[number] for number in streamed}
        if not streamed:
            return
        cuda = device.type == "cuda"
        source: HostMemory | DiskAhead
        if on_disk:
            source = DiskAhead(coming, streamed, cuda, lambda event: event.synchronize() if cuda else None)
        else:
            source = HostMemory(coming, cuda, shared)
            for number in streamed:
                self._replace_host_copies(number, packed[number], source.flat[number])
        self.transport = CudaTransport(device, source, coming) if cuda else HostTransport(source, coming)
        self.stream = LayerStream(streamed, self.transport)
        for number in streamed:
            layers[number].register_forward_pre_hook(partial(self._begin, number, self._views(packed[number])))
            layers[number].register_forward_hook(partial(self._end, number))

    def _views(self, layer: PackedLayer) -> list[dict[str, Any]]:
        """The layer's parameters in each buffer of the device."""
        assert self.transport is not None
        return [
            {name: torch.nn.Parameter(weight.view(flat), requires_grad=False) for name, weight in layer.weights.items()}
            for flat in self.transport.buffers
        ]

    def _begin(self, number: int, views: list[dict[str, Any]], module: Any, given: Any) -> None:
        assert self.stream is not None
        buffer = self.stream.begin(number)
        for name, slot in self._slots[number].items():
            slot.part._parameters[slot.name] = views[buffer][name]

    def _end(self, number: int, module: Any, given: Any, answer: Any) -> None:
        assert self.stream is not None
        self.stream.end(number)
        for slot in self._slots[number].values():
            slot.part._parameters[slot.name] = slot.empty

    def _place(self, number: int, layer: PackedLayer) -> None:
        """Put a layer on the device for good."""
        for name, slot in self._slots[number].items():
            weight = layer.weights[name]
            value = torch.empty(weight.shape, dtype=weight.dtype, device=self.device)
            value.copy_(weight.read())
            slot.part._parameters[slot.name] = torch.nn.Parameter(value, requires_grad=False)

    def _replace_host_copies(self, number: int, layer: PackedLayer, flat: Tensor) -> None:
        """Let accelerate's table of weights have the values in the layer's bytes, which frees its own."""
        for name, slot in self._slots[number].items():
            table = slot.part._hf_hook.weights_map
            table.dataset.state_dict[f"{table.prefix}{slot.name}"] = layer.weights[name].view(flat)


def slots_of(layer: Any) -> Mapping[str, Slot]:
    """The offloaded weights of a layer by name."""
    return {
        f"{path}.{name}": Slot(part, name, parameter)
        for path, part in layer.named_modules()
        for name, parameter in part.named_parameters(recurse=False)
        if parameter.device.type == "meta"
    }


def reader(slot: Slot) -> Callable[[], Tensor]:
    """Reads a weight from where accelerate keeps it: host memory, or a file, which it would read to the device."""
    slot.part._hf_hook.weights_map.dataset.device = "cpu"
    return lambda: slot.part._hf_hook.weights_map[slot.name]
