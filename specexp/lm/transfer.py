"""From the host to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device. From pageable memory CUDA copies only once the device has done all before it."""
    if device.type in ("cpu", "mps"):
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """Host integers as int64 on the device."""
    return to_device(torch.tensor(values, dtype=torch.int64), device)
