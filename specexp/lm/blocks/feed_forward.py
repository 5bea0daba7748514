"""The part of a block after attention: gated and plain MLPs, and mixtures of experts.

Shapes: T tokens, D hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from specexp.lm.blocks.linear import Linear
from specexp.lm.blocks.norms import Norm
from specexp.lm.kernels.reference import ACTIVATIONS
from specexp.lm.kernels.table import Gated

Activation = Callable[[Tensor], Tensor]
# Up to this many pairs of token and expert, each pair reads its own copy of the expert's weights: no token is sorted to
# its expert, which would wait for the device, and could not be captured.
MAX_PAIRS = 64


class FeedForward(Protocol):
    """Maps normed hidden states x[T, D] to [T, D]."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def added(self, x: Tensor, residual: Tensor, multiplier: float) -> Tensor:
        """`multiplier` times the result, added to `residual`[T, D], which may be written over; it may be x itself."""
        ...


class Mlp:
    """down(act(gate(x)) * up(x)), with gate and up as one product; or down(act(up(x))) without a gate.

    A `kernel` computes act(gate) * up in one go, for the activations that it knows.
    """

    __slots__ = ("_kernel", "_kind", "act", "down", "gated", "up")

    def __init__(self, up: Linear, down: Linear, act: Activation, gated: bool, kernel: Gated | None = None) -> None:
        self.up, self.down, self.act, self.gated = up, down, act, gated
        self._kind = _kind_of(act)
        self._kernel = kernel if gated and self._kind else None

    def _inner(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        if self._kernel is not None:
            return self._kernel(inner, self._kind)
        if not self.gated:
            return self.act(inner)
        gate, up = inner.chunk(2, 1)
        return self.act(gate).mul_(up)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self._inner(x))

    def added(self, x: Tensor, residual: Tensor, multiplier: float) -> Tensor:
        return self.down.added(self._inner(x), residual, multiplier, overwrite=True)


class Mixture:
    """A module with its own router and experts, called with all tokens at once."""

    __slots__ = ("_experts_per_token", "_module")

    def __init__(self, module: Any, experts_per_token: int) -> None:
        self._module, self._experts_per_token = module, experts_per_token

    def __call__(self, x: Tensor) -> Tensor:
        with experts_by_pairs(self._module, x.shape[0] * self._experts_per_token):
            result = self._module(x[None])
        output: Tensor = result[0] if isinstance(result, tuple) else result
        return output.view(x.shape)

    def added(self, x: Tensor, residual: Tensor, multiplier: float) -> Tensor:
        return torch.add(residual, self(x), alpha=multiplier)


class NormedMlp:
    """An MLP with a norm of its own after it."""

    __slots__ = ("_mlp", "_norm")

    def __init__(self, mlp: Mlp, norm: Norm) -> None:
        self._mlp, self._norm = mlp, norm

    def __call__(self, x: Tensor) -> Tensor:
        return self._norm(self._mlp(x))

    def added(self, x: Tensor, residual: Tensor, multiplier: float) -> Tensor:
        return torch.add(residual, self(x), alpha=multiplier)


class RoutedExperts:
    """Experts that read the residual stream x[T, D] through a norm, beside an MLP; the router reads it without."""

    __slots__ = ("_after", "_before", "_experts_per_token", "_module")

    def __init__(self, module: Any, before: Norm, after: Norm, experts_per_token: int) -> None:
        self._module, self._before, self._after = module, before, after
        self._experts_per_token = experts_per_token

    def __call__(self, x: Tensor) -> Tensor:
        with experts_by_pairs(self._module, x.shape[0] * self._experts_per_token):
            _, weights, experts = self._module.router(x)
            return self._after(self._module.experts(self._before(x), experts, weights))


@contextmanager
def experts_by_pairs(module: Any, num_pairs: int) -> Iterator[None]:
    """Within the context, transformers' experts compute each pair of a token and an expert by itself, if there are at
    most `MAX_PAIRS`; otherwise nothing changes."""
    config: Any = getattr(getattr(module, "experts", None), "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is None or num_pairs > MAX_PAIRS:
        yield
        return
    config._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        config._experts_implementation = before


def _kind_of(act: Activation) -> str:
    """The name of an activation that kernels know; "" for others."""
    for kind, function in ACTIVATIONS.items():
        if isinstance(act, partial) and isinstance(function, partial):
            same = (act.func, act.args, act.keywords) == (function.func, function.args, function.keywords)
        else:
            same = act is function
        if same:
            return kind
    return ""


def activation(module: Any) -> Activation:
    """The function of an activation module, called directly where that is a function of torch."""
    if type(module).__name__ in ("SiLU", "SiLUActivation"):
        return functional.silu
    if type(module).__name__ in ("GELUActivation", "GELUTanh"):
        function: Activation = module.act
        return function

    def call(x: Tensor) -> Tensor:
        result: Tensor = module(x)
        return result

    return call
