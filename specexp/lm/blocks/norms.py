"""Normalisation over the last dimension, by the calls that are fastest for a device and dtype.

Shapes: D normalised values; weights are [D], or [heads, D] with one row per head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from specexp.lm.kernels.table import RmsNorm

Norm = Callable[[Tensor], Tensor]


def rms_norm(weight: Tensor | None, eps: float, size: int, like: Tensor, kernel: RmsNorm | None = None) -> Norm:
    """x / sqrt(mean(x^2) + eps) * weight over `size` values, for tensors of the dtype and on the device of `like`.

    A weight of float32 for another dtype is multiplied in float32, as models do whose norms add 1 to their weights.
    With a `kernel` it computes them all.
    """
    if kernel is not None:
        return lambda x: kernel(x, weight, eps)
    if like.dtype == torch.float32 and like.device.type == "cpu":
        return _CpuRmsNorm(weight, eps, size)
    if like.device.type == "cuda" and (weight is None or (weight.dtype == like.dtype and weight.dim() == 1)):
        # One kernel, in float32 inside. It rounds once; transformers' norms also round before the weight.
        return lambda x: functional.rms_norm(x, (size,), weight, eps)
    return _WideRmsNorm(weight, eps, size)


def layer_norm(weight: Tensor | None, bias: Tensor | None, eps: float, size: int) -> Norm:
    """(x - mean) / sqrt(variance + eps) * weight + bias over `size` values."""
    if weight is None or weight.dim() == 1:
        return lambda x: functional.layer_norm(x, (size,), weight, bias, eps)

    def per_head(x: Tensor) -> Tensor:
        result = functional.layer_norm(x, (size,), None, None, eps).mul_(weight)
        return result if bias is None else result.add_(bias)

    return per_head


class _CpuRmsNorm:
    """x / sqrt(|x|^2 + D eps) * (sqrt(D) weight): four small calls instead of transformers' eight."""

    __slots__ = ("_offset", "_weight")

    def __init__(self, weight: Tensor | None, eps: float, size: int) -> None:
        self._offset = torch.tensor((eps * size) ** 0.5)
        self._weight: Tensor | float = size**0.5 if weight is None else weight * size**0.5

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.div(length.hypot_(self._offset)).mul_(self._weight)


class _WideRmsNorm:
    """In float32, rounded as transformers' norms are: before a weight of the same dtype, too."""

    __slots__ = ("_eps", "_size", "_weight")

    def __init__(self, weight: Tensor | None, eps: float, size: int) -> None:
        self._weight, self._eps, self._size = weight, eps, size

    def __call__(self, x: Tensor) -> Tensor:
        result = functional.rms_norm(x.float(), (self._size,), None, self._eps)
        if self._weight is None:
            return result.to(x.dtype)
        if self._weight.dtype == x.dtype:
            return result.to(x.dtype) * self._weight
        return (result * self._weight).to(x.dtype)
