"""Layers whose weights stay in CPU memory or on disk: accelerate brings each to the device when its turn comes, at
every call, and drops it behind. Embeddings, the last norm and the head stay on the device.

A call then costs at least what moving the weights costs, so that many tokens in one call cost little more than one:
what SpecExec is for. No layer is fetched ahead of its turn, and none is kept from call to call.

On disk, safetensors files are mapped where they are. Other files, and weights that transformers rearranges as it reads
them, are written once more to a folder of this process's own (below TMPDIR), which goes when the model does.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import align_module_device


@dataclass(slots=True, weakref_slot=True)
class Offload:
    """Where the layers of one model stay, `kind` cpu or disk, and the device that calls run on.

    The model holds on to it: the folder on disk goes when it does, at the end of the process at the latest.
    """

    kind: str
    device: torch.device
    folder: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if self.kind == "disk":
            self.folder = tempfile.mkdtemp(prefix="specexp-offload-")
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def placement(self, empty: Any) -> dict[str, Any]:
        """Arguments of from_pretrained, from the same module without weights."""
        layers = set(empty._no_split_modules or ())
        if not any(type(module).__name__ in layers for module in empty.modules()):
            raise ValueError("it does not say which of its parts are layers; set offload to none")
        # A torch.device is not what accelerate calls "cpu", the place that weights stay in: from CPU memory to the CPU
        # it sets its hooks too then, a rehearsal on a machine without another device. Files need the name.
        device = str(self.device) if self.kind == "disk" else self.device
        return {"device_map": self._places(empty, layers, device), "offload_folder": self.folder or None}

    def _places(self, module: Any, layers: set[str], device: str | torch.device, prefix: str = "") -> dict[str, Any]:
        """Part by part, since a part may be named once only: the layers, and all that holds none."""
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
    """The values of a parameter, wherever they stay."""
    owner, _, leaf = name.rpartition(".")
    part = module.get_submodule(owner)
    with align_module_device(part):
        value: torch.Tensor = getattr(part, leaf).detach()
    return value
