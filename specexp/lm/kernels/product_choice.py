"""How the product with a weight is computed for a number of rows: by PyTorch, or by a tiling of the Triton kernel.

The decisions are functions of timings: `product_timing.py` measures, `product_cache.py` keeps what was measured.

A tiling fixes the order in which a result is summed. Those that are tried depend on the weight alone, its shape and
dtype, so that one tiling for all numbers of rows gives a row the same bits among any others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKETS = (1, 8, 16, 64)  # the largest numbers of rows of a choice each; timings are of as many
PYTORCH = "torch"  # the name of PyTorch's product among timings
STEADY = 1.02  # what is not slower than the fastest by more comes first in the order of the candidates
PROGRAMS = (512, 256, 1024)  # about as many run at once on a large GPU: four, two and eight a multiprocessor
LEAST_STEPS = 4  # of a split, each of `in_block` inputs: shorter ones would not fill the pipeline of loads
# Blocks of outputs and inputs, and warps: each gives a multiprocessor some 8 to 32 KiB of weight to wait for at a time.
BLOCKS = {
    2: ((32, 128, 4), (64, 128, 4), (32, 256, 4), (16, 256, 2)),
    4: ((32, 64, 4), (64, 32, 4), (16, 64, 2)),
}


@dataclass(frozen=True, slots=True)
class Tiling:
    """Blocks of the kernel, and into how many parts the inputs are split, which are summed by themselves first."""

    out_block: int
    in_block: int
    warps: int
    splits: int

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"{self.out_block}x{self.in_block} warps {self.warps} splits {self.splits}"


def tilings(outputs: int, inputs: int, dtype: torch.dtype) -> list[Tiling]:
    """The tilings that are tried for a weight[out, in], each once; the first one is used where none was measured."""
    result = []
    for programs in PROGRAMS:
        for out_block, in_block, warps in BLOCKS[dtype.itemsize]:
            blocks, steps = -(-outputs // out_block), -(-inputs // in_block)
            splits = max(1, min(programs // blocks, steps // LEAST_STEPS))
            each = -(-steps // splits)  # as the kernel cuts them; no split is empty
            result.append(Tiling(out_block, in_block, warps, -(-steps // each)))
    return list(dict.fromkeys(result))


def default_tiling(weight: Tensor) -> Tiling:
    """The tiling of a weight[out, in] that was not measured."""
    return tilings(weight.shape[0], weight.shape[1], weight.dtype)[0]


@dataclass(frozen=True, slots=True)
class ProductChoice:
    """The tilings of one weight: of each of `BUCKETS`, and of more rows. None: PyTorch's product."""

    buckets: tuple[Tiling | None, ...]
    beyond: Tiling | None = None

    def of(self, rows: int) -> Tiling | None:
        """The tiling of so many rows."""
        return next((tiling for most, tiling in zip(BUCKETS, self.buckets, strict=True) if rows <= most), self.beyond)

    @property
    def used(self) -> list[Tiling]:
        """The different tilings that are used."""
        return list(dict.fromkeys(each for each in (*self.buckets, self.beyond) if each is not None))


def always(tiling: Tiling) -> ProductChoice:
    """This tiling for every number of rows: a row then has the same bits among any others."""
    return ProductChoice((tiling,) * len(BUCKETS), tiling)


Timings = Mapping[str, float | None]  # seconds of a product by name; None: it does not run


def fastest(candidates: Sequence[Tiling], timings: Mapping[int, Timings]) -> ProductChoice:
    """The fastest for each bucket, PyTorch's product among them; PyTorch beyond."""
    return ProductChoice(tuple(_least([None, *candidates], [timings[most]]) for most in BUCKETS))


def invariant(candidates: Sequence[Tiling], timings: Mapping[int, Timings]) -> ProductChoice | None:
    """One tiling for every number of rows: the least of its times at 1 row and at 16, each as a fraction of the least
    one there. None if no tiling runs at both."""
    tiling = _least(candidates, [timings[1], timings[16]])
    return None if tiling is None else always(tiling)


def name_of(tiling: Tiling | None) -> str:
    """The name of a candidate among timings."""
    return PYTORCH if tiling is None else tiling.name


def _least(candidates: Sequence[Tiling | None], timings: Sequence[Timings]) -> Tiling | None:
    """The first candidate whose cost is the least, within `STEADY`: what is chosen hardly changes from run to run."""
    costs = dict.fromkeys(candidates, 0.0)
    for each in timings:
        for candidate in list(costs):
            if (seconds := each.get(name_of(candidate))) is None:
                del costs[candidate]
            else:
                costs[candidate] += seconds / min(value for value in each.values() if value is not None)
    best = min(costs.values(), default=0.0)
    return next((candidate for candidate, cost in costs.items() if cost <= STEADY * best), None)
