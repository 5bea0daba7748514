"""Recognizes out-of-memory errors and turns them into a ModelError that says what to change.

This module does not import PyTorch: it recognizes PyTorch's errors by class name and message. `specexp/profiling`
measures peak memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from specexp.decoding.protocol import Role
from specexp.errors import ModelError, first_line
from specexp.lm.runtime import ModelConfig

_OF_CPU = ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory")


def is_exhausted(error: BaseException) -> bool:
    """True for an out-of-memory error: PyTorch's error of a device, its CPU allocator's RuntimeError, or Python's."""
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")  # by name, which needs no import of PyTorch
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_CPU))


def way_out(error: BaseException, lower: str, models: Mapping[Role, ModelConfig] | None = None) -> str:
    """One line: the error, which setting to lower, and how to load the models in less memory; `models` are loaded."""
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
    """Within the context, turn an out-of-memory error into a ModelError that names `what`, the models and remedies."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise ModelError(f"{what}: {way_out(error, lower, models)}") from error
