"""Says whether a device is there, for callers whose default names one."""

from __future__ import annotations

from typing import Any


def is_present(device: str) -> bool:
    """False for a CUDA device that this machine, or this build of torch, does not have."""
    import torch

    kind, _, index = device.partition(":")
    return kind != "cuda" or (int(index) if index.isdigit() else 0) < torch.cuda.device_count()


def timing_event(device: Any) -> Any:
    """A CUDA event that has a time, recorded now in the stream of `device` that runs the calls."""
    import torch

    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
