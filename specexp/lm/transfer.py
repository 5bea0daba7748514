"""Copies from the host to a device that do not wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device. Pins it first: CUDA copies from pageable memory only after all queued work."""
    if device.type in ("cpu", "mps"):
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class Staging:
    """Host memory from which numbers are copied to a tensor again and again, without waiting and without allocating."""

    def __init__(self, to: Tensor) -> None:
        on_cuda = to.device.type == "cuda"
        self._to, self._host = to.view(-1), torch.empty(to.numel(), dtype=to.dtype, pin_memory=on_cuda)
        self._values = self._host.numpy()
        self._copied: Any = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]

    def copy(self, values: Sequence[float]) -> None:
        """Copy numbers to the tensor's first places."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy before this one, which ended long ago unless nothing was read since
        self._values[: len(values)] = values
        self._to[: len(values)].copy_(self._host[: len(values)], non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._to.device))


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """Copy host integers to the device as int64."""
    return to_device(torch.tensor(values, dtype=torch.int64), device)
