"""Copies from the host to a device that do not wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device. Pins it first: CUDA copies from pageable memory only after all queued work."""
    if device.type in ("cpu", "mps"):
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """Copy host integers to the device as int64."""
    return to_device(torch.tensor(values, dtype=torch.int64), device)
