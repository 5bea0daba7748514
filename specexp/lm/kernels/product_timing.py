"""Measures products on the device: PyTorch's and the kernel's tilings, once for each shape of a weight.

Products are timed as decoding calls them: recorded in a CUDA graph, one after another, each with a weight of another
layer, so that a weight comes from memory and not from a cache that the product before has filled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from specexp.lm.kernels import product_choice
from specexp.lm.kernels.product_cache import Measured, ProductCache
from specexp.lm.kernels.product_choice import BUCKETS, PYTORCH, ProductChoice, Tiling, name_of
from specexp.lm.kernels.table import Product
from specexp.lm.out_of_memory import is_exhausted

LEAST_CALLS, MOST_CALLS = 8, 64  # of a recording
LEAST_BYTES = 256 << 20  # of weights in a recording, if the model has as many of a shape: more than a GPU caches
ROUNDS = 7  # replays that are timed
Call = Callable[[], object]


class ProductTimer(Protocol):
    """Times calls on a device."""

    def __call__(self, calls: Sequence[Call]) -> float:
        """Seconds of one of these calls where they follow each other. Raises whatever a call raises."""
        ...


class CudaTimer:
    """Replays a CUDA graph of the calls, between events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, calls: Sequence[Call]) -> float:
        with torch.cuda.device(self._device):
            calls[0]()  # compiles the kernel, or lets a library choose one, outside the recording
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            graph.replay()
            milliseconds: list[float] = []
            for _ in range(ROUNDS):
                start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                milliseconds.append(start.elapsed_time(end))
        return statistics.median(milliseconds) / 1000 / len(calls)


def shape_name(weight: Tensor) -> str:
    """The shape and dtype of a weight, in files."""
    return f"{weight.shape[0]}x{weight.shape[1]} {str(weight.dtype).removeprefix('torch.')}"


def choose(
    product: Product, weights: Mapping[str, Sequence[Tensor]], measuring: tuple[ProductCache, ProductTimer] | None,
    one_order: bool,
) -> dict[str, ProductChoice]:  # fmt: skip
    """How products with these weights, by `shape_name`, are computed; `one_order`: with a row's bits the same among any
    others. Without `measuring`, by the tiling of a weight's shape, and in one order. A shape whose tilings all fail in
    one order is left out."""
    if measuring is None:
        return {name: product_choice.always(product_choice.default_tiling(each[0])) for name, each in weights.items()}
    measured = _timings(product, weights, *measuring)
    result = {}
    for name, (first, *_) in weights.items():
        decide = product_choice.invariant if one_order else product_choice.fastest
        choice = decide(_candidates(first), measured[name])
        if choice is not None:
            result[name] = choice
    return result


def _candidates(weight: Tensor) -> list[Tiling]:
    return product_choice.tilings(weight.shape[0], weight.shape[1], weight.dtype)


def _timings(
    product: Product, weights: Mapping[str, Sequence[Tensor]], cache: ProductCache, timer: ProductTimer
) -> Measured:
    """The timings of all shapes: those in the cache, and new ones, which are added to it shape by shape."""
    result, missing = cache.read(), []
    for name, (first, *_) in weights.items():
        names = {PYTORCH, *(tiling.name for tiling in _candidates(first))}
        known = result.get(name, {})
        if any(set(known.get(rows, {})) != names or known[rows][PYTORCH] is None for rows in BUCKETS):
            missing.append(name)
    total = sum(len(BUCKETS) * (1 + len(_candidates(weights[name][0]))) for name in missing)
    with tqdm(total=total, desc="measuring products", unit="product", delay=1, dynamic_ncols=True, leave=False) as bar:
        for name in missing:
            each = weights[name]
            result[name] = {
                rows: {
                    name_of(tiling): _seconds(product, each, rows, tiling, timer, bar.update)
                    for tiling in (None, *_candidates(each[0]))
                }
                for rows in BUCKETS
            }
            cache.add({name: result[name]})
    return result


@torch.inference_mode()
def _seconds(
    product: Product, weights: Sequence[Tensor], rows: int, tiling: Tiling | None, timer: ProductTimer,
    told: Callable[[int], object],
) -> float | None:  # fmt: skip
    """Seconds of a product; None if it does not run. PyTorch's always does: its errors are raised."""
    first = weights[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, first.shape[1], generator=generator).to(first.device, first.dtype)
    bytes_each = first.numel() * first.itemsize
    count = min(MOST_CALLS, max(LEAST_CALLS, -(-LEAST_BYTES // bytes_each)))
    used = islice(cycle(weights), count)
    calls: list[Call] = [
        partial(torch.mm, x, weight.t()) if tiling is None else partial(product, x, weight, tiling=tiling)
        for weight in used
    ]
    try:
        return timer(calls)
    except Exception as error:  # a compiler fails in many ways, and any of them leaves the other products
        if tiling is None or is_exhausted(error):
            raise
        return None
    finally:
        told(1)
