"""Peak memory, of the process and of each CUDA device, and what to say where it runs out.

PyTorch is asked only where something else has loaded it, and CUDA only where it is in use: nothing here waits for a
device. A method's own peak is known on CUDA alone, where the allocator's mark can be set back; a process has one mark.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from specexp.decoding.protocol import Role
from specexp.errors import ModelError
from specexp.lm.runtime import ModelConfig

FILE = "memory.json"  # of an output folder
RSS = "rss"
_OF_CPU = ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory")


@dataclass(slots=True)
class Peaks:
    """Bytes by place (`rss`, `cuda0`, ...): of all that was done, and of each method."""

    all: dict[str, int] = field(default_factory=dict)
    methods: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, label: str) -> dict[str, int]:
        return self.methods.get(label, {})

    @contextmanager
    def watching(self, label: str) -> Iterator[None]:
        """Inside, what CUDA devices hold counts for this method, too."""
        _take(self.all, cuda())
        for index in _devices():
            _torch().cuda.reset_peak_memory_stats(index)
        try:
            yield
        finally:
            found = cuda()
            if found:
                _take(self.methods.setdefault(label, {}), found)
            _take(self.all, found)

    def take(self) -> None:
        """Look at the process as a whole."""
        _take(self.all, {RSS: rss(), **cuda()})

    def as_dict(self) -> dict[str, Any]:
        return {"all": self.all, "methods": self.methods}


def peaks_of(found: Mapping[str, Any] | None) -> Peaks:
    """From JSON; of nothing, none."""
    return Peaks() if found is None else Peaks(dict(found["all"]), {k: dict(v) for k, v in found["methods"].items()})


def metrics(peaks: Mapping[str, int]) -> dict[str, float]:
    """`memory/peak_rss_bytes`, `memory/peak_cuda0_bytes`, ..."""
    return {f"memory/peak_{place}_bytes": float(size) for place, size in peaks.items()}


def rss() -> int:
    """Most bytes that this process has had in memory since it began."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cuda() -> dict[str, int]:
    """Most bytes that tensors have taken on each CUDA device in use since its mark was set back."""
    peaks = {f"cuda{index}": int(_torch().cuda.max_memory_allocated(index)) for index in _devices()}
    return {place: size for place, size in peaks.items() if size}


def _devices() -> range:
    torch = _torch()
    in_use = torch is not None and torch.cuda.is_initialized()
    return range(torch.cuda.device_count() if in_use else 0)


def _torch() -> Any:
    return sys.modules.get("torch")


def _take(into: dict[str, int], found: Mapping[str, int]) -> None:
    for place, size in found.items():
        into[place] = max(size, into.get(place, 0))


def is_exhausted(error: BaseException) -> bool:
    """Whether memory has run out: PyTorch's own error of a device, the words of its CPU allocator, or Python's."""
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")  # PyTorch is not imported to ask for it
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_CPU))


def way_out(error: BaseException, lower: str, models: Mapping[Role, ModelConfig] | None = None) -> str:
    """What ran out, what to lower and what to load otherwise, in one line; `models` are those that are loaded."""
    first = (str(error).strip().splitlines() or ["out of memory"])[0]
    loaded = ", ".join(f"{role} {_how(config)}" for role, config in (models or {}).items())
    return (
        f"{first} Lower {lower}, or choose a smaller dtype, quantization nf4, offload cpu or disk, or another device."
        + (f" Loaded: {loaded}." if loaded else "")
    )


def _how(config: ModelConfig) -> str:
    quantization = "" if config.quantization == "none" else f", {config.quantization}"
    offload = "" if config.offload == "none" else f", offloaded to {config.offload}"
    return f"'{config.model}' ({config.dtype}{quantization}{offload}) on {config.device}"


@contextmanager
def told(what: str, lower: str, models: Mapping[Role, ModelConfig] | None = None) -> Iterator[None]:
    """Inside, memory that runs out is a ModelError: at what, with which models, and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise ModelError(f"{what}: {way_out(error, lower, models)}") from error
