"""A fake device: tensors on it have shapes and no values, and it counts every wait of the host.

On a GPU, reading a value waits until the device has done all earlier work, and so does a copy from pageable host
memory, which `torch.tensor(list, device="cuda")` makes. PyTorch's "meta" device replaces the GPU here: masked indexing,
a branch on a value and other implicit reads have no answer there and raise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from helpers.model_folders import build
from specexp.lm.hf import hf_model
from specexp.lm.hf.hf_model import HFModel

VALUE = 1.0  # what every read returns
COPIES = ("aten.to.", "aten._to_copy", "aten.copy_")


class Waits(TorchDispatchMode):
    """Counts, by operation, what makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [x for x in tree_flatten((args, kwargs, out))[0] if isinstance(x, Tensor)]
        copies = str(func).startswith(COPIES)
        # A number on the host is passed as a launch argument, unless it is copied; an empty tensor needs no copy.
        places = {x.device.type for x in tensors if x.numel() and (copies or x.shape or x.device.type != "cpu")}
        if len(places) > 1:
            assert copies, f"{func} mixes tensors of the host and of the device"
            if not (kwargs.get("non_blocking") or any(x is True for x in args[1:])):
                self.counts[str(func)] += 1
        return out


class Brings(TorchFunctionMode):
    """Counts tensors made from host values on the device: a copy on a real device, but not on one without values."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.asarray, torch.as_tensor) and not isinstance(args[0], Tensor)
        if made and out.device.type != "cpu":
            self.counts[func.__name__] += 1
        return out


def on_fake_device(seed: int = 0, **more: Any) -> HFModel:
    """A model whose weights are on the fake device."""
    with (
        mock.patch.object(hf_model, "refusal", return_value=None),
        mock.patch.object(hf_model.forward_check, "native_fault", return_value=None),  # it compares values
    ):
        return HFModel(build("llama", seed).to("meta"), "fake", **more)


@contextmanager
def counting() -> Iterator[Waits]:
    """Inside, reads of the fake device are counted as `tolist`, and return VALUE everywhere."""
    waits, read = Waits(), Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        if tensor.device.type == "cpu":
            return read(tensor)
        waits.counts["tolist"] += 1
        return [VALUE] * tensor.numel() if tensor.shape else VALUE

    with (
        mock.patch.object(Tensor, "tolist", tolist),
        mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor),
        waits,
        Brings(waits.counts),
    ):
        yield waits
