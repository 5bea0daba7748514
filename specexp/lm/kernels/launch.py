"""What the kernels share: their launch on the device of a tensor, and sizes that a kernel's blocks can have."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

LEAST_DOT = 16  # `tl.dot` takes no smaller block


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Within the context, Triton launches on the device of `x`: it takes the current one, not that of its arguments."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def block_of(size: int, least: int = 1) -> int:
    """The smallest power of two that holds `size` values, at least `least`."""
    return max(least, 1 << max(size - 1, 0).bit_length())
