"""Rotary angles by position, taken from a model's own rotary module and cached.

A head's first R values are rotated in pairs: (i, i + R / 2), or (2 i, 2 i + 1) if the pairs are adjacent. In both cases
the rotation is x * cos + swapped(x) * signed sin, where `swapped` exchanges the two values of each pair: with the
values viewed as [2, R / 2] or [R / 2, 2], it is a flip of the axis of length 2.

Shapes: P positions, T tokens, H heads, d head size, R rotated values per head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specexp.lm.blocks.long_factors import turned
from specexp.lm.kernels.reference import Table

CHUNK = 512  # positions by which the tables grow


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """One table of angles."""

    layer_type: str | None  # the argument that selects it in the rotary module; None if the module has one table
    adjacent: bool  # the pairs are (2 i, 2 i + 1)
    layout: str  # of the module's angles: "twice" (a b c a b c), "repeated" (a a b b c c) or "once" (a b c)


@dataclass(frozen=True, slots=True)
class QueryScaling:
    """Queries at position p are multiplied by 1 + beta log(1 + floor(p / length))."""

    beta: float
    length: int


class Angles:
    """The angles of some positions by every table; for models that scale queries by position, also scales [P, 1, 1]."""

    __slots__ = ("scales", "tables")

    def __init__(self, tables: Sequence[Table], scales: Tensor | None) -> None:
        self.tables, self.scales = tables, scales

    def at(self, start: int, stop: int) -> Angles:
        """The angles of positions start .. stop - 1."""
        scales = None if self.scales is None else self.scales[start:stop]
        return Angles([(cos[start:stop], sin[start:stop], axis) for cos, sin, axis in self.tables], scales)

    def take(self, positions: Tensor) -> Angles:
        """The angles of positions[T]."""
        scales = None if self.scales is None else self.scales.index_select(0, positions)
        return Angles(
            [(cos.index_select(0, positions), sin.index_select(0, positions), axis) for cos, sin, axis in self.tables],
            scales,
        )


class RotaryTables:
    """Angles of all positions used so far."""

    def __init__(
        self,
        module: Any,
        specs: Sequence[RotarySpec],
        scaling: QueryScaling | None,
        like: Tensor,
        changes_at: int | None = None,
        long: bool = False,
    ) -> None:
        """If the angles change at some length, they are those of the short factors, or the long ones, at all positions.

        The tables have more positions than a sequence has, and the module would choose the factors by the last one.
        """
        self._module, self._specs, self._scaling = module, specs, scaling
        self._turned: Callable[[], AbstractContextManager[None]] = nullcontext
        if changes_at is not None:
            self._turned = partial(turned, module, long, changes_at)
        self._like = like.new_empty(1, 1, 1)  # the module takes dtype and device from it
        self._length = 0
        self._angles = Angles([], None)

    def upto(self, length: int) -> Angles:
        """The angles of at least positions 0 .. length - 1."""
        if length > self._length:
            self._length = -(-max(length, 2 * self._length) // CHUNK) * CHUNK
            positions = torch.arange(self._length, device=self._like.device)
            self._angles = Angles([self._table(spec, positions) for spec in self._specs], self._scales(positions))
        return self._angles

    def _table(self, spec: RotarySpec, positions: Tensor) -> Table:
        kind = () if spec.layer_type is None else (spec.layer_type,)
        with self._turned():
            cos, sin = (part[0] for part in self._module(self._like, positions[None], *kind))
        if spec.layout == "twice":
            cos, sin = cos[:, : cos.shape[1] // 2], sin[:, : sin.shape[1] // 2]
        elif spec.layout == "repeated":
            cos, sin = cos[:, ::2], sin[:, ::2]
        axis = 2 if spec.adjacent else 1
        return torch.stack([cos, cos], axis)[:, None], torch.stack([-sin, sin], axis)[:, None], axis + 1

    def _scales(self, positions: Tensor) -> Tensor | None:
        if self._scaling is None:
            return None
        result = 1 + self._scaling.beta * torch.log(1 + torch.floor(positions / self._scaling.length))
        return result.to(self._like.dtype)[:, None, None]
