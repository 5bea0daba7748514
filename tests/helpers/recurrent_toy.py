"""A toy model whose session is a recurrent state: what it says of a token depends on the one before, which only the
state remembers. Modules of the package are those that are imported now, maybe with a bug in them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Mutable = Any


class ToyState:
    """The last token and the number of tokens, in one array that `advance` overwrites, as a kernel would."""

    def __init__(self, model: Mutable) -> None:
        self._model, self._state = model, np.array([model.vocab_size, 0])
        self.num_forwards = 0

    def advance(self, tokens: Any, position: int, rows: int, hidden: bool) -> tuple[Any, Any]:
        assert position == self._state[1], f"the state is after {self._state[1]} tokens, not {position}"
        self.num_forwards += 1
        before = np.concatenate([self._state[:1], tokens[:-1]])
        logits, states = self._model.rows(before, tokens, position + np.arange(len(tokens)))
        if len(tokens):
            self._state[:] = tokens[-1], position + len(tokens)
        start = len(tokens) - rows
        return logits[start:], states[start:] if hidden else None

    def copy(self) -> Any:
        return self._state.copy()

    def restore(self, copy: Any) -> None:
        self._state[:] = (self._model.vocab_size, 0) if copy is None else copy

    def check_trees(self) -> None:
        raise AssertionError("no trees")


class RecurrentToy:
    """`ToyModel` with such sessions."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._toy = importlib.import_module("specexp.lm.toy").ToyModel(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._toy, name)

    def sessions(self, count: int, capacity: int = 0) -> Sequence[Any]:
        replay = importlib.import_module("specexp.lm.replay")
        return [replay.ReplaySession(ToyState(self._toy), np.zeros(0, dtype=np.int64)) for _ in range(count)]

    def session(self) -> Any:
        return self.sessions(1)[0]
