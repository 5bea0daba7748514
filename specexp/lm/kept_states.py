"""Hidden states of a target that runs on transformers' forward, kept for a draft that reads them.

Hooks on the module's layers hand over what each forward computes; a session wraps another one and keeps that by slot.
(The native forward writes them into its buffers by itself: `kv_cache.py`.)

Shapes: N tokens of a feed, T layers whose states are kept, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specexp.lm.model import Branches, Session
from specexp.lm.transfer import integers


class StateHooks:
    """Collects the outputs of modules."""

    def __init__(self, modules: Sequence[torch.nn.Module], device: torch.device) -> None:
        self._device = device
        self._seen: list[list[Tensor]] = [[] for _ in modules]
        for module, seen in zip(modules, self._seen, strict=True):
            module.register_forward_hook(self._hook(seen))

    @staticmethod
    def _hook(seen: list[Tensor]) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            seen.append(states.reshape(-1, states.shape[-1]))

        return keep

    def take(self, num: int) -> Tensor:
        """The states [num, T D] of the last `num` tokens that were fed; forgets all others."""
        parts = [torch.cat([each.to(self._device) for each in seen])[-num:] for seen in self._seen]
        self.clear()
        return torch.cat(parts, dim=1)

    def clear(self) -> None:
        """Forget what was seen, that of forwards which no session made included."""
        for seen in self._seen:
            seen.clear()


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
        self._hooks.clear()
        answer = self.inner.feed(tokens, rows, hidden, branches)
        if num:
            fresh = self._hooks.take(num)
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
