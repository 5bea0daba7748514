"""A numpy table language model: a fake implementation of `Model`, small enough to enumerate.

The logits after a token depend on that token, the one before it and the position, all read back from a cache of slots.
A cache that is not rewound, or rows that are shifted, therefore change the logits. No text, no training, no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from specexp.lm.model import Array, Branches, Feed, one_by_one

HIDDEN = 6
_PERIOD = 5


class ToyModel:
    """Looks up logits ~ N(0, scale^2) in a table. `draft_noise` adds a second table; 0 gives the same model."""

    def __init__(
        self, vocab_size: int = 3, seed: int = 0, draft_noise: float = 0.0, scale: float = 1.2, context: int = 64
    ) -> None:
        rng = np.random.default_rng(seed)
        shape = (vocab_size + 1, vocab_size, vocab_size)  # previous token (or none), token, next
        self._table = scale * rng.standard_normal(shape)
        self._positions = 0.7 * scale * rng.standard_normal((_PERIOD, vocab_size))
        self._hidden = rng.standard_normal((vocab_size + 1, vocab_size, HIDDEN))
        if draft_noise:
            other = np.random.default_rng([seed, 1])
            self._table = self._table + draft_noise * scale * other.standard_normal(shape)
            self._hidden = other.standard_normal(self._hidden.shape)
        self._vocab_size = vocab_size
        self._context = context

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def context(self) -> int:
        return self._context

    def sessions(self, count: int, capacity: int = 0) -> list[ToySession]:
        return [ToySession(self) for _ in range(count)]

    def session(self) -> ToySession:
        return ToySession(self)

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        return one_by_one(feeds)

    def ids(self, tokens: Sequence[int]) -> Array:
        return np.asarray(tokens, dtype=np.int64)

    def check_trees(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        tables = hashlib.sha256(self._table.tobytes() + self._hidden.tobytes()).hexdigest()
        return {
            "class": "ToyModel",
            "vocab_size": self._vocab_size,
            "context": self._context,
            "fingerprint": tables[:16],
            "hidden_size": HIDDEN,
        }

    def wait(self) -> None:
        return None

    def rows(self, before: Array, tokens: Array, positions: Array) -> tuple[Array, Array]:
        """logits[N, V], hidden[N, H] after `tokens`[N], each preceded by `before`[N] (vocab_size: no predecessor)."""
        return self._table[before, tokens] + self._positions[positions % _PERIOD], self._hidden[before, tokens]


class ToySession:
    """A cache of (token, position) slots; a row's predecessor is the slot it sees with the position one lower."""

    def __init__(self, model: ToyModel) -> None:
        self._model = model
        self._tokens = np.zeros(0, dtype=np.int64)
        self._positions = np.zeros(0, dtype=np.int64)

    @property
    def length(self) -> int:
        return len(self._tokens)

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        assert rows <= len(tokens), "a row needs a token"
        start, stop = self.length, self.length + len(tokens)
        positions = np.arange(start, stop)
        sees = np.tril(np.ones((stop, stop), dtype=bool))
        if branches is not None:
            sees[branches.base :, branches.base :] = False
            for i, ancestors in enumerate(branches.ancestors):
                sees[branches.base + i, [branches.base + a for a in ancestors]] = True
            behind = positions >= branches.base
            positions[behind] = branches.base + np.asarray(branches.depths)[positions[behind] - branches.base]
        assert max(positions, default=0) < self._model.context, "fed beyond the toy's context"
        self._tokens = np.concatenate([self._tokens, tokens])
        self._positions = np.concatenate([self._positions, positions])
        logits, states = self._rows(sees, np.arange(stop - rows, stop))
        return logits, states if hidden else None

    def _rows(self, sees: Array, slots: Array) -> tuple[Array, Array]:
        before = sees[slots] & (self._positions[None, :] == self._positions[slots, None] - 1)
        previous = np.where(before.any(axis=1), self._tokens[before.argmax(axis=1)], self._model.vocab_size)
        return self._model.rows(previous, self._tokens[slots], self._positions[slots])

    def states(self, start: int, stop: int) -> Array:
        """The hidden states [N, H] of the slots start .. stop - 1, which are a chain (`StateKeeper`)."""
        return self._rows(np.tril(np.ones((self.length, self.length), dtype=bool)), np.arange(start, stop))[1]

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self.length, f"cannot truncate to {length} of {self.length} slots"
        kept = [*range(length), *slots]
        self._tokens, self._positions = self._tokens[kept], self._positions[kept]

    def slots(self) -> object:
        return tuple(self._tokens.tolist()), tuple(self._positions.tolist())
