"""Peak memory, of the process and of each CUDA device, and what to say where it runs out.

PyTorch is asked only where something else has loaded it, and CUDA only where it is in use: nothing here waits for a
device. A method's own peak is known on CUDA alone, where the allocator's mark can be set back; a process has one mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from specexp.decoding.protocol import Role
from specexp.errors import ModelError, first_line
from specexp.lm.runtime import ModelConfig

_OF_CPU = ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory")


def is_exhausted(error: BaseException) -> bool:
    """Whether memory has run out: PyTorch's own error of a device, the words of its CPU allocator, or Python's."""
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")  # PyTorch is not imported to ask for it
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_CPU))


def way_out(error: BaseException, lower: str, models: Mapping[Role, ModelConfig] | None = None) -> str:
    """What ran out, what to lower and what to load otherwise, in one line; `models` are those that are loaded."""
    first = first_line(error, "out of memory")
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
def translate_oom(what: str, lower: str, models: Mapping[Role, ModelConfig] | None = None) -> Iterator[None]:
    """Inside, memory that runs out is a ModelError: at what, with which models, and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise ModelError(f"{what}: {way_out(error, lower, models)}") from error
