"""Says whether a device is there, for callers whose default names one."""

from __future__ import annotations


def is_present(device: str) -> bool:
    """False for a CUDA device that this machine, or this build of torch, does not have."""
    import torch

    kind, _, index = device.partition(":")
    return kind != "cuda" or (int(index) if index.isdigit() else 0) < torch.cuda.device_count()
