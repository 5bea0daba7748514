"""Reads values from the device to the host: one transfer for everything that a step reads. Counts the transfers."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace, device

from specexp.engine.request_state import is_number
from specexp.lm.model import Array


class HostTransfer:
    """Reads arrays to the host. `num_reads` counts how often the host waited for the device."""

    def __init__(self) -> None:
        self.num_reads = 0

    def read(self, arrays: Sequence[Array | float]) -> list[list[float]]:
        """Values of all arrays, in one transfer. Integers below 2**53 survive float64. Lists and numbers are there."""
        # An array that is named several times is read once.
        distinct = {id(a): a for a in arrays if not isinstance(a, int | float | list)}
        if not distinct:
            return [_there(a) for a in arrays]
        self.num_reads += 1
        values: dict[int, list[float]] = {}
        # One array is read as it is; on a CPU there is nothing to transfer.
        if len(distinct) == 1 or str(device(next(iter(distinct.values())))) == "cpu":
            for key, a in distinct.items():
                result = a.tolist()
                values[key] = result if isinstance(result, list) else [result]
            return [values[id(a)] if id(a) in values else _there(a) for a in arrays]
        xp = array_namespace(next(iter(distinct.values())))
        parts = [xp.reshape(xp.astype(a, xp.float64), (-1,)) for a in distinct.values()]
        flat = xp.concat(parts).tolist()
        start = 0
        for key, a in distinct.items():
            size = 1 if is_number(a) else a.shape[0]
            values[key] = flat[start : start + size]
            start += size
        return [values[id(a)] if id(a) in values else _there(a) for a in arrays]


def _there(values: list[float] | float) -> list[float]:
    return [values] if isinstance(values, int | float) else list(values)
