"""A toy draft that reads the toy target's hidden states, for the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specexp.lm.model import Array, Branches, Feed, Session, one_by_one
from specexp.lm.toy import HIDDEN, ToyModel


class ToyHead:
    """What it scores after a token depends on the token and on a feature: the target's state at the token before it,
    or its own output there, where the target has not been."""

    def __init__(self, target: ToyModel, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.target, self.vocab_size, self.context = target, target.vocab_size, target.context
        self.table = rng.standard_normal((self.vocab_size, self.vocab_size))
        self.reads = rng.standard_normal((HIDDEN, self.vocab_size))
        self.outputs = rng.standard_normal((self.vocab_size, HIDDEN))
        self.mixes = rng.standard_normal((HIDDEN, HIDDEN)) / 2

    def sessions(self, count: int, capacity: int = 0) -> list[ToyHeadSession]:
        return [ToyHeadSession(self) for _ in range(count)]

    def session(self) -> ToyHeadSession:
        return ToyHeadSession(self)

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        return one_by_one(feeds)

    def ids(self, tokens: Sequence[int]) -> Array:
        return self.target.ids(tokens)

    def check_trees(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        return {"class": "ToyHead"}

    def wait(self) -> None:
        return None


class ToyHeadSession:
    """Slots of (token, output); a drafted token's feature is the output in the slot before it."""

    def __init__(self, model: ToyHead) -> None:
        self._model = model
        self._tokens: list[int] = []
        self._outputs: list[Array] = []
        self._committed: list[int] = []
        self._keeper: Any = None

    @property
    def length(self) -> int:
        return len(self._tokens)

    def read(self, ids: Sequence[int], keeper: Session | None) -> None:
        self._committed, self._keeper = list(ids), keeper

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        model, scored = self._model, []
        for token in tokens.tolist():
            slot = self.length
            before = slot - 1
            if branches is not None and slot >= branches.base:
                path = branches.ancestors[slot - branches.base]
                before = branches.base + path[-2] if len(path) > 1 else branches.base - 1
            if slot < len(self._committed):
                assert token == self._committed[slot]
                feature = self._states(before) if slot else np.zeros(HIDDEN)
            else:
                feature = self._outputs[before]
            self._tokens.append(token)
            self._outputs.append(np.tanh(model.outputs[token] + feature @ model.mixes))
            scored.append(model.table[token] + feature @ model.reads)
        taken = scored[len(scored) - rows :]
        return np.stack(taken) if taken else np.zeros((0, model.vocab_size)), None

    def _states(self, slot: int) -> Array:
        if self._keeper is not None:
            assert self._keeper.length == len(self._committed) - 1, "the target holds all committed tokens but the last"
            return self._keeper.states(slot, slot + 1)[0]
        session = self._model.target.session()
        session.feed(self._model.ids(self._committed[: slot + 1]), 0)
        return session.states(slot, slot + 1)[0]

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        kept = [*range(length), *slots]
        self._tokens, self._outputs = [self._tokens[i] for i in kept], [self._outputs[i] for i in kept]

    def slots(self) -> object:
        return tuple(self._tokens), tuple(tuple(each.tolist()) for each in self._outputs)
