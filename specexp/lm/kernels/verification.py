"""Which kernels a model runs on: those that give PyTorch's results on its shapes.

Before a kernel is used it has run on the shapes of the model, on the model's device. One that does not compile there,
or differs by more than rounding, is left out, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specexp.errors import first_line
from specexp.installed import is_installed
from specexp.lm.kernels import reference
from specexp.lm.kernels.product_cache import ProductCache, cache_folder, environment_of
from specexp.lm.kernels.product_choice import ProductChoice, Tiling
from specexp.lm.kernels.product_timing import CudaTimer, choose, shape_name
from specexp.lm.kernels.table import (
    PYTORCH,
    Attend,
    Gated,
    Kernels,
    Product,
    RmsNorm,
    RotateAndStore,
    triton_kernels,
)  # fmt: skip
from specexp.lm.out_of_memory import is_exhausted

LEAST_CAPABILITY = (8, 0)
# How far a result may be from PyTorch's, as a fraction of the largest one; both round.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.005, torch.bfloat16: 0.03}
MOST_CHECKED = 1024  # outputs and inputs of the product that is checked before any is measured
SLOTS = 192  # of the attention that is checked: three splits


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of a block's attention, as far as kernels depend on it."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int
    softcap: float


def kernels_of(device: torch.device, dtype: torch.dtype, size: int, blocks: Sequence[Heads]) -> Kernels:
    """The kernels for a model of hidden size `size` with such blocks, on a device: none on a CPU."""
    if device.type != "cuda" or dtype not in TOLERANCE or not is_installed("triton"):
        return PYTORCH
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return PYTORCH
    return verified(triton_kernels(), device, dtype, size, blocks)


@torch.inference_mode()
def verified(kernels: Kernels, device: torch.device, dtype: torch.dtype, size: int, blocks: Sequence[Heads]) -> Kernels:
    """`kernels` without those that fail on these shapes, or give other results than PyTorch."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def norm(kernel: RmsNorm) -> list[Tensor]:
        return [kernel(x, weight, 1e-6) for x in rows for weight in (weights, None)]

    def activated(kernel: Gated) -> list[Tensor]:
        return [kernel(x, act) for x in rows for act in reference.ACTIVATIONS]

    def turned(kernel: RotateAndStore) -> list[Tensor]:
        results = []
        for each, projected, flat in zip(shapes, joined, pools, strict=True):
            table = (*random_angles(len(projected), each.head_dim, device, dtype), 2)
            inner, stored = projected.clone(), flat.clone()
            kernel(inner, table, each.heads, each.kv_heads, stored, slots)
            results += [inner[:, : each.heads * each.head_dim], stored]
        return results

    def attended(kernel: Attend) -> list[Tensor]:
        results = []
        for each, projected, flat in zip(shapes, joined, pools, strict=True):
            queries = projected[:, : each.heads * each.head_dim].view(-1, each.heads, each.head_dim)
            scale = each.head_dim**-0.5
            for mask, order in ((None, None), (seen, None), (None, index)):
                results.append(
                    kernel(
                        queries, flat, each.kv_heads, slots, each.window, mask, SLOTS, scale, each.softcap, None, order
                    )
                )  # fmt: skip
        return results

    def multiplied(kernel: Product) -> list[Tensor]:
        return _products(kernel, square, None)

    shapes = sorted(set(blocks), key=repr)
    rows, weights = [random(1, size), random(5, size)], random(size)
    square = random(min(size, MOST_CHECKED), min(size, MOST_CHECKED))
    slots = torch.arange(SLOTS - 5, SLOTS, device=device)
    seen = (torch.rand(5, SLOTS, generator=generator) < 0.5).to(device)
    index = torch.stack([torch.randperm(SLOTS, generator=generator) for _ in range(5)]).to(device)
    seen[:, 0] = True
    seen &= torch.arange(SLOTS, device=device) <= slots[:, None]
    joined = [random(5, (each.heads + 2 * each.kv_heads) * each.head_dim) for each in shapes]
    pools = [random(SLOTS, 2 * each.kv_heads * each.head_dim) for each in shapes]
    faults: dict[str, str] = {}
    for name, results in (
        ("rms_norm", norm), ("gated", activated), ("rotate_and_store", turned), ("attend", attended),
        ("product", multiplied),
    ):  # fmt: skip
        kernel = getattr(kernels, name)
        if kernel is not None and (fault := _fault(results, kernel, getattr(reference, name), TOLERANCE[dtype])):
            faults[name] = fault
    without: dict[str, Any] = dict.fromkeys(faults)
    said = (f"{name}: {fault}" for name, fault in faults.items())
    return replace(kernels, faults=(*kernels.faults, *said), **without)


def chosen_products(
    kernels: Kernels, weights: Sequence[Tensor], one_order: bool = False
) -> tuple[Kernels, dict[str, ProductChoice]]:
    """How products with these weights are computed, by `shape_name`, and the kernels with what there is to say of that.

    On CUDA the products are measured, once for an environment, and the faster ones are used; elsewhere, where kernels
    are given, they compute all products. With `one_order`, a row's bits are the same among any other rows, for all
    weights that have a choice. A product that differs from PyTorch's leaves its weights to PyTorch.
    """
    if kernels.product is None or not weights:
        return kernels, {}
    by_shape: dict[str, list[Tensor]] = {}
    for weight in weights:
        by_shape.setdefault(shape_name(weight), []).append(weight)
    device, measuring, notes = weights[0].device, None, []
    if device.type == "cuda":
        try:
            folder = cache_folder()
        except OSError as error:
            notes.append(f"how fast products are is measured at each start: {error}")
            folder = None
        measuring = ProductCache(folder, environment_of(device)), CudaTimer(device)
    choices = choose(kernels.product, by_shape, measuring, one_order)
    faults = product_faults(kernels.product, by_shape, choices)
    notes += measuring[0].notes if measuring is not None else []
    return (
        replace(kernels, faults=(*kernels.faults, *faults.values()), notes=(*kernels.notes, *notes)),
        {name: choice for name, choice in choices.items() if name not in faults},
    )


@torch.inference_mode()
def product_faults(
    product: Product, weights: Mapping[str, Sequence[Tensor]], choices: Mapping[str, ProductChoice]
) -> dict[str, str]:
    """What is wrong with the chosen products, by `shape_name`."""
    faults: dict[str, str] = {}
    for name, choice in choices.items():
        weight = weights[name][0]
        for tiling in choice.used:
            results = partial(_products, weight=weight, tiling=tiling)
            if fault := _fault(results, product, reference.product, TOLERANCE[weight.dtype]):
                faults[name] = f"product with {name} ({tiling.name}): {fault}"
                break
    return faults


def _products(kernel: Product, weight: Tensor, tiling: Tiling | None) -> list[Tensor]:
    """Products of one row, and of more than a block of rows, with and without what may be added to them."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)

    outputs, inputs = weight.shape
    results, bias = [], random(outputs)
    for num in (1, 5, 18):
        x, residual = random(num, inputs), random(num, outputs)
        results.append(kernel(x, weight, None, None, 1.0, tiling))
        results.append(kernel(x, weight, bias, residual, 0.5, tiling, residual))
    return results


def random_angles(num: int, size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of some angles, [num, 1, 2, size / 2]."""
    angles = torch.arange(num * (size // 2), device=device, dtype=torch.float32).view(num, 1, 1, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], 2).to(dtype), torch.cat([-sin, sin], 2).to(dtype)


def _fault(results: Callable[..., list[Tensor]], kernel: object, expected: object, tolerance: float) -> str | None:
    """Why `kernel` is not used, if anything is wrong with its results."""
    try:
        got = results(kernel)
        if got and got[0].device.type == "cuda":
            torch.cuda.synchronize(got[0].device)
    except Exception as error:  # a compiler fails in many ways, and any of them leaves PyTorch's operations
        if is_exhausted(error):
            raise
        return f"it does not run here ({type(error).__name__}: {first_line(error)})"
    gaps = [
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30))
        for a, b in zip(got, results(expected), strict=True)
    ]
    wrong = [gap for gap in gaps if not gap <= tolerance]  # NaN, too
    return f"its results differ from PyTorch's by {wrong[0]:.2g} of the largest value" if wrong else None
