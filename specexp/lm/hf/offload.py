"""Keeps the weights of layers in CPU memory or on disk. Embeddings, the last norm and the head stay on the device.

On CUDA, and wherever `offload_memory` is given, `lm/streaming` brings each layer while the one before it computes, and
as many layers stay on the device as that memory holds. Elsewhere accelerate copies each layer just before it runs.

A call then takes at least as long as moving the weights, so that many tokens in one call cost little more than one:
the case that SpecExec is made for.

On disk, safetensors files are mapped in place. Other files, and weights that transformers rearranges as it reads them,
are written once more to a temporary folder of this process (below TMPDIR), which is deleted together with the model.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import align_module_device

from specexp.lm.runtime import ModelConfig
from specexp.lm.streaming.streamed_layers import StreamedLayers
from specexp.lm.streaming.transports import free_memory


@dataclass(slots=True, weakref_slot=True)
class Offload:
    """Where the layers of one model stay (`kind` is cpu or disk), and the device that calls run on.

    The model holds a reference: the folder on disk is deleted with this object, at process exit at the latest.
    """

    kind: str
    device: torch.device
    memory: float | None = None  # GiB of layers that stay on the device; None: what is free there
    folder: str = field(init=False, default="")
    streamed: StreamedLayers | None = field(init=False, default=None)

    @classmethod
    def of(cls, config: ModelConfig) -> Offload | None:
        """What a config asks for; None if every layer stays on the device."""
        if config.offload == "none":
            return None
        return cls(config.offload, torch.device(config.device), config.offload_memory)

    def __post_init__(self) -> None:
        if self.kind == "disk":
            self.folder = tempfile.mkdtemp(prefix="specexp-offload-")
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def placement(self, empty: Any) -> dict[str, Any]:
        """Arguments of from_pretrained; `empty` is the same module on the meta device."""
        layers = set(empty._no_split_modules or ())
        if not any(type(module).__name__ in layers for module in empty.modules()):
            raise ValueError("its class does not name its layers (_no_split_modules); set offload to none")
        # accelerate takes the string "cpu" as the offload location. A torch.device makes it install its hooks from CPU
        # memory to the CPU as well, so that offloading can be tried on a CPU-only machine. Disk needs the string.
        device = str(self.device) if self.kind == "disk" else self.device
        return {"device_map": self._places(empty, layers, device), "offload_folder": self.folder or None}

    def stream(self, module: Any, shared: bool = False) -> None:
        """Bring the layers of a loaded module while others compute, where that is done (see above).

        With `shared`, those in host memory have the first one's bytes: a measurement's, whose values do not matter.
        """
        if self.device.type != "cuda" and self.memory is None:
            return
        kinds = set(module._no_split_modules or ())
        layers = [each for each in module.modules() if type(each).__name__ in kinds]
        memory = free_memory(self.device) if self.memory is None else int(self.memory * 2**30)
        self.streamed = StreamedLayers(layers, self.device, self.kind == "disk", memory, shared)

    def _places(self, module: Any, layers: set[str], device: str | torch.device, prefix: str = "") -> dict[str, Any]:
        """The device map, by parts: each layer, and each largest part without layers, since no part may occur twice."""
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        places: dict[str, Any] = {f"{prefix}{name}": device for name, _ in own}
        for name, part in module.named_children():
            if type(part).__name__ in layers:
                places[f"{prefix}{name}"] = self.kind
            elif any(type(inner).__name__ in layers for inner in part.modules()):
                places |= self._places(part, layers, device, f"{prefix}{name}.")
            else:
                places[f"{prefix}{name}"] = device
        return places


def stored(module: Any, name: str) -> torch.Tensor:
    """The values of a parameter, offloaded or not."""
    owner, _, leaf = name.rpartition(".")
    part = module.get_submodule(owner)
    weights = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
    if weights is not None:  # wherever its layer is computed
        return weights[leaf].to(getattr(part, leaf).dtype)  # type: ignore[no-any-return]
    with align_module_device(part):
        value: torch.Tensor = getattr(part, leaf).detach()
    return value
