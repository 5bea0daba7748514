"""Builds a target of a known shape with random weights whose layers are offloaded, without ever holding it whole.

The module is made on the meta device. Embeddings, the last norm and the head are drawn on the device; each weight of a
layer is drawn when the streamed offload reads it into the layer's bytes, or when its file is written. Where the place
of the layers is too small, they share storage: one layer's weights are those of all layers, and each layer's copy still
moves all of its bytes.

Two further modules have the same weights: one whose layers accelerate's hooks bring, from the same host memory or
files, and one that has a single layer's weights on the device for all layers, which computes without any copy.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from specexp.benchmark.shapes import SHAPES
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import DTYPES, quiet
from specexp.lm.hf.offload import Offload
from specexp.lm.streaming.layer_stream import resident_layers
from specexp.lm.streaming.transports import PackedLayer

STD = 0.02  # of weights; those of norms are 1
MOST_OF_MEMORY = 0.8  # share of what is available that layers may take: the rest is for everything else


@dataclass(frozen=True, slots=True)
class OffloadedTarget:
    """A target by the streamed offload, by accelerate's hooks, and with its layers on the device.

    Its layers that come at each call need `needed` bytes of host memory or disk, of which `available` were free.
    """

    streamed: HFModel
    hooked: HFModel
    resident: HFModel
    needed: int
    available: int
    shared: bool

    @property
    def offload(self) -> Offload:
        assert self.streamed.offload is not None
        return self.streamed.offload


def shares_storage(needed: int, available: int) -> bool:
    """True if layers that need so many bytes must share one layer's, where so many are available."""
    return needed > MOST_OF_MEMORY * available


def build(shape: str, device: str, dtype: str, kind: str, memory: float) -> OffloadedTarget:
    """The target of a shape; `kind` is cpu or disk, and `memory` GiB of its layers stay on the device."""
    config = AutoConfig.for_model(**SHAPES[shape]["target"], bos_token_id=1, eos_token_id=None, pad_token_id=0)
    offload = Offload(kind, torch.device(device), memory)
    module = _empty(config, dtype, offload.device)
    places = offload.placement(module)["device_map"]
    layers = [name for name, place in places.items() if place == kind]
    sizes = [_size(module.get_submodule(name)) for name in layers]
    stay = resident_layers(sizes, int(memory * 2**30))
    needed = sum(size for number, size in enumerate(sizes) if number not in stay)
    free = available_bytes(kind, offload.folder)
    shared = shares_storage(needed, free)

    weights = DrawnWeights(module, layers, offload.device)
    index = _written(weights, layers, offload.folder, shared) if kind == "disk" else None
    others = {name: parameter for name, parameter in module.named_parameters() if name not in weights}
    rest = {name: torch.nn.Parameter(weights.drawn(name, each), False) for name, each in others.items()}
    _put(module, rest)
    _dispatch(module, places, weights, index, offload)
    offload.stream(module, shared)
    assert offload.streamed is not None

    hooked = _empty(config, dtype, offload.device)
    # What stays on the device stays there for the hooks, too.
    staying = {name: parameter for name, parameter in module.named_parameters() if parameter.device.type != "meta"}
    _put(hooked, staying)
    kept = {layers[number] for number in offload.streamed.resident}
    on_device = next(place for place in places.values() if place != kind)
    _dispatch(
        hooked, {name: on_device if name in kept else place for name, place in places.items()}, weights, index, offload
    )
    resident = _empty(config, dtype, offload.device)
    _put(resident, {**rest, **_one_layer_for_all(resident, weights, layers, offload.device)})
    name = f"{shape} target"
    return OffloadedTarget(
        HFModel(module.eval(), name, offload=offload),
        HFModel(hooked.eval(), f"{name}, by accelerate", forward="transformers"),
        HFModel(resident.eval(), f"{name}, in memory", forward="transformers"),
        needed,
        free,
        shared,
    )


class DrawnWeights(dict[str, Tensor]):
    """The weights of layers by name. One that has no values yet is drawn when it is read: alike each time."""

    def __init__(self, module: Any, layers: Sequence[str], device: torch.device) -> None:
        super().__init__(
            (f"{layer}.{name}", parameter)
            for layer in layers
            for name, parameter in module.get_submodule(layer).named_parameters()
        )
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        value = super().__getitem__(name)
        return self.drawn(name, value) if value.device.type == "meta" else value

    def drawn(self, name: str, like: Tensor) -> Tensor:
        """Random values on the device, by the name alone; ones for a norm."""
        if like.dim() < 2:
            return torch.ones(like.shape, dtype=like.dtype, device=self._device)
        rng = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        return torch.empty(like.shape, dtype=like.dtype, device=self._device).normal_(0, STD, generator=rng)


def available_bytes(kind: str, folder: str) -> int:
    """Bytes that are free for layers: on the disk of `folder`, or in the memory that this process may take."""
    if kind == "disk":
        return shutil.disk_usage(folder).free
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):  # not Linux: all of it
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, _left_in_cgroup(Path("/sys/fs/cgroup")) or free)


def _left_in_cgroup(folder: Path) -> int | None:
    """Bytes below a container's limit, files that it can drop counted as free; None without a limit."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        droppable = next(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    except (OSError, StopIteration):
        return None
    return None if limit == "max" else max(0, int(limit) - int(used) + droppable)


def _empty(config: Any, dtype: str, device: torch.device) -> Any:
    """The module without weights; buffers, which are not stored with them, have their values on the device."""
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    for name, part in list(module.named_modules()):
        if any(buffer.device.type == "meta" for buffer in part.buffers(recurse=False)):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, type(part)(config=config).to(device))
    return module


def _size(layer: Any) -> int:
    """The bytes of a layer as it is copied."""
    return PackedLayer.of({name: (weight, weight.clone) for name, weight in layer.named_parameters()}).size


def _put(module: Any, weights: Mapping[str, Any]) -> None:
    """Let the module have these parameters in place of those of the same names."""
    for name, parameter in weights.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._parameters[leaf] = parameter
    module.tie_weights()


def _dispatch(
    module: Any, places: Mapping[str, Any], weights: DrawnWeights, index: Mapping[str, Any] | None, offload: Offload
) -> None:
    """Have accelerate install its hooks, as transformers does for a folder."""
    with quiet():
        dispatch_model(
            module,
            device_map=dict(places),
            state_dict=weights if index is None else None,
            offload_dir=offload.folder or None,
            offload_index=index,
            skip_keys=module._skip_keys_device_placement,
        )


def _written(weights: DrawnWeights, layers: Sequence[str], folder: str, shared: bool) -> dict[str, Any]:
    """Write a file for each layer, or one for all, and return where accelerate finds each weight."""
    result: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        path = Path(folder, f"layer-{0 if shared else number}.safetensors")
        names = [name.removeprefix(f"{layer}.") for name in weights if name.startswith(f"{layer}.")]
        if not path.exists():
            save_file({name: weights[f"{layer}.{name}"].cpu() for name in names}, path)
        for name in names:
            dtype = str(weights.get(f"{layer}.{name}").dtype).removeprefix("torch.")  # type: ignore[union-attr]
            result[f"{layer}.{name}"] = {"safetensors_file": str(path), "weight_name": name, "dtype": dtype}
    return result


def _one_layer_for_all(
    module: Any, weights: DrawnWeights, layers: Sequence[str], device: torch.device
) -> dict[str, torch.nn.Parameter]:
    """The first layer's parameters on the device, under the names of every layer."""
    first = {
        name: torch.nn.Parameter(weights[f"{layers[0]}.{name}"].to(device), False)
        for name, _ in module.get_submodule(layers[0]).named_parameters()
    }
    return {f"{layer}.{name}": parameter for layer in layers for name, parameter in first.items()}
