"""Lets recurrent layers continue from their state by several tokens in one forward, where transformers' do so by one.

- Mamba's selective scan (Mamba, Falcon Mamba, Jamba, Zamba) begins at a state of zero. It is linear in its state, so
  what a state adds to each token's output and to the last state is added here:
  h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t, y_t = C_t h_t (Gu and Dao, "Mamba", 2023, equations 2 and 4), hence
  exp(A (dt_1 + ... + dt_t)) h_0 in h_t.
- RecurrentGemma's recurrent block forgets the last inputs of its convolution: it runs token by token, the rest of the
  model in one pass.

`install` replaces the functions in question once; outside of `carried` they do what they did before.

Shapes: B rows (one), I inner size, S state size, N tokens.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache

SCAN = "mamba_selective_scan"  # transformers' name, in the module of each family
BLOCK = "RecurrentGemmaRecurrentBlock"


@dataclass(slots=True)
class Begun:
    """The state [B, I, S] at which the layer that runs now begins, or [B, heads, I, S]; None at the beginning."""

    state: Tensor | None = None
    head: int = 0  # the next head that scans: Zamba's do so one after the other

    def of_scan(self) -> Tensor | None:
        if self.state is None or self.state.dim() == 3:
            return self.state
        self.head += 1
        return self.state[:, self.head - 1]


_begun: ContextVar[Begun | None] = ContextVar("begun", default=None)


def install(module: Any) -> bool:
    """Replace what a model's layers continue by; True if there is such a thing."""
    names = {type(part).__module__ for part in module.modules() if type(part).__module__.startswith("transformers.")}
    homes = [sys.modules[name] for name in names]
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (home, SCAN, _continuing) for home in homes if hasattr(home, SCAN)
    ]
    places += [(getattr(home, BLOCK), "forward", _by_token) for home in homes if hasattr(home, BLOCK)]
    for owner, name, wrap in places:
        function = getattr(owner, name)
        if getattr(function, "reads", None) is not _begun:
            wrapper = wrap(getattr(function, "original", function))
            wrapper.original, wrapper.reads = getattr(function, "original", function), _begun
            setattr(owner, name, wrapper)
    return bool(places)


@contextmanager
def carried(cache: DynamicCache) -> Iterator[None]:
    """Within the context, installed layers continue from the states in this cache."""
    assert "get_recurrent_state" not in vars(cache), "a cache is carried once at a time"
    begun, read = Begun(), cache.get_recurrent_state

    def noted(layer_idx: int, state_idx: int = 0) -> Tensor | None:
        begun.state, begun.head = read(layer_idx, state_idx), 0
        return begun.state

    cache.get_recurrent_state = noted
    token = _begun.set(begun)
    try:
        yield
    finally:
        _begun.reset(token)
        del cache.get_recurrent_state


def _continuing(scan: Callable[..., Any]) -> Any:
    """A selective scan that begins at the state of the layer that calls it."""
    signature = inspect.signature(scan)

    @wraps(scan)
    def continuing(*args: Any, **more: Any) -> Any:
        begun = None if torch.compiler.is_compiling() else _begun.get()
        state = None if begun is None else begun.of_scan()
        if state is None:
            return scan(*args, **more)
        given = signature.bind(*args, **more)
        given.apply_defaults()
        dt, A, C, z = (given.arguments[name] for name in ("dt", "A", "C", "z"))
        out, last = scan(*args, **{**more, "return_last_state": True})
        steps = dt.float()
        if (bias := given.arguments["delta_bias"]) is not None:
            steps = steps + bias.float()[:, None]
        if given.arguments["delta_softplus"]:
            steps = functional.softplus(steps)
        decay = torch.exp(A[None, :, None] * steps.cumsum(-1)[..., None])  # [B, I, N, S]
        states = decay * state.float()[:, :, None]
        added = torch.einsum("bins,bsn->bin", states, C.float())
        if z is not None:
            added = added * functional.silu(z.float())
        out = (out.float() + added).to(out.dtype)
        last = (last.float() + states[:, :, -1]).to(last.dtype)
        return (out, last) if given.arguments["return_last_state"] else out

    return continuing


def _by_token(forward: Callable[..., Any]) -> Any:
    """A block's forward that, within `carried`, runs one token after the other."""

    @wraps(forward)
    def stepping(self: Any, input_states: Tensor, position_ids: Tensor, *args: Any, **more: Any) -> Any:
        if torch.compiler.is_compiling() or _begun.get() is None:
            return forward(self, input_states, position_ids, *args, **more)
        pairs = zip(torch.split(input_states, 1, dim=1), torch.split(position_ids, 1, dim=1), strict=True)
        return torch.cat([forward(self, x, at, *args, **more)[0] for x, at in pairs], dim=1), None

    return stepping
