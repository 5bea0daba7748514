"""Hidden states of a target that runs on transformers' forward, kept for a draft that reads them.

Hooks on the module's layers hand over what each forward computes; a session wraps another one and keeps that by slot.
(The native forward writes them into its buffers by itself: `kv_cache.py`.)

Shapes: N tokens of a feed, T layers whose states are kept, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specexp.lm.model import Branches, Session
from specexp.lm.transfer import integers


class StateHooks:
    """Collects the outputs of modules while it is asked to; there are hooks on them only then."""

    def __init__(self, modules: Sequence[torch.nn.Module], device: torch.device) -> None:
        self._modules, self._device = modules, device

    @contextmanager
    def collecting(self) -> Iterator[Callable[[int], Tensor]]:
        """Within the context, what forwards compute is kept. Yields what gives the states [N, T D] of the last N tokens
        that were fed."""
        seen: list[list[Tensor]] = [[] for _ in self._modules]

        def last(num: int) -> Tensor:
            return torch.cat([torch.cat([each.to(self._device) for each in parts])[-num:] for parts in seen], dim=1)

        hooks = [
            module.register_forward_hook(_keeping(parts)) for module, parts in zip(self._modules, seen, strict=True)
        ]
        try:
            yield last
        finally:
            for hook in hooks:
                hook.remove()


def _keeping(seen: list[Tensor]) -> Any:
    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        seen.append(states.reshape(-1, states.shape[-1]))

    return keep


class KeepingSession:
    """A session that also keeps the states of its slots."""

    def __init__(self, inner: Session, hooks: StateHooks) -> None:
        self.inner, self._hooks = inner, hooks
        self._states: Tensor | None = None  # [capacity, T D], of which the first `length` are in use

    @property
    def length(self) -> int:
        return self.inner.length

    @torch.inference_mode()
    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        start, num = self.length, tokens.shape[0]
        with self._hooks.collecting() as last:
            answer = self.inner.feed(tokens, rows, hidden, branches)
            if num:
                fresh = last(num)
                self._room(start + num, fresh)[start : start + num] = fresh
        return answer

    def _room(self, slots: int, like: Tensor) -> Tensor:
        old = self._states
        if old is None or slots > old.shape[0]:
            self._states = like.new_zeros(2 * slots, like.shape[1])
            if old is not None:
                self._states[: old.shape[0]] = old
        assert self._states is not None
        return self._states

    @torch.inference_mode()
    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        self.inner.truncate(length, slots)
        if slots and self._states is not None:
            kept = integers(slots, self._states.device)
            self._states[length : length + len(slots)] = self._states.index_select(0, kept)

    def slots(self) -> object:
        return self.inner.slots()

    def states(self, start: int, stop: int) -> Tensor:
        """The kept states [N, T D] of the slots start .. stop - 1, those of all layers side by side."""
        assert self._states is not None, "no states are kept"
        assert stop <= self.length, f"no states of slots {start} to {stop}"
        return self._states[start:stop]
