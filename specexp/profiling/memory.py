"""Peak memory of the process and of each CUDA device.

PyTorch is used only if other code has imported it, and CUDA only if it is initialized: nothing here waits for a device.
Peaks per method exist only on CUDA, where the allocator's peak can be reset; the process has one peak for its lifetime.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FILE = "memory.json"  # in an output folder
RSS = "rss"


@dataclass(slots=True)
class MemoryPeaks:
    """Peak bytes by place (`rss`, `cuda0`, ...): of the whole process, and of each method."""

    all: dict[str, int] = field(default_factory=dict)
    methods: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, label: str) -> dict[str, int]:
        return self.methods.get(label, {})

    @contextmanager
    def watching(self, label: str) -> Iterator[None]:
        """Within the context, the peaks of CUDA devices also count for this method."""
        _take(self.all, cuda())
        for index in _devices():
            _torch().cuda.reset_peak_memory_stats(index)
        try:
            yield
        finally:
            result = cuda()
            if result:
                _take(self.methods.setdefault(label, {}), result)
            _take(self.all, result)

    def take(self) -> None:
        """Update the peaks of the whole process."""
        _take(self.all, {RSS: rss(), **cuda()})

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add the peaks of another process, as JSON: the largest of both count."""
        _take(self.all, other["all"])
        for label, sizes in other["methods"].items():
            _take(self.methods.setdefault(label, {}), sizes)

    def as_dict(self) -> dict[str, Any]:
        return {"all": self.all, "methods": self.methods}


def peaks_of(saved: Mapping[str, Any] | None) -> MemoryPeaks:
    """Build peaks from JSON; empty ones from None."""
    return (
        MemoryPeaks()
        if saved is None
        else MemoryPeaks(dict(saved["all"]), {k: dict(v) for k, v in saved["methods"].items()})
    )


def metrics(peaks: Mapping[str, int]) -> dict[str, float]:
    """The peaks as metrics: `memory/peak_rss_bytes`, `memory/peak_cuda0_bytes`, ..."""
    return {f"memory/peak_{place}_bytes": float(size) for place, size in peaks.items()}


def rss() -> int:
    """The peak resident set size of this process in bytes, since its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cuda() -> dict[str, int]:
    """The peak bytes of tensors on each CUDA device in use, since the last reset."""
    peaks = {f"cuda{index}": int(_torch().cuda.max_memory_allocated(index)) for index in _devices()}
    return {place: size for place, size in peaks.items() if size}


def _devices() -> range:
    torch = _torch()
    in_use = torch is not None and torch.cuda.is_initialized()
    return range(torch.cuda.device_count() if in_use else 0)


def _torch() -> Any:
    return sys.modules.get("torch")


def _take(into: dict[str, int], sizes: Mapping[str, int]) -> None:
    for place, size in sizes.items():
        into[place] = max(size, into.get(place, 0))
