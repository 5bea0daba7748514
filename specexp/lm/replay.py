"""Sessions of models with a recurrent state, which holds a whole sequence and cannot be cut back to an earlier token.

Before each feed, a copy of the state is kept. If the session is then truncated to a length inside that feed, the state
goes back to the latest copy that is not longer, and the tokens between the two are fed again. They go along with the
next feed, in the same forward, as long as they are few; more of them are fed by themselves first, so that a newer copy
can be made. A session that is not truncated replays nothing.

Shapes: N tokens of a feed, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from array_api_compat import array_namespace

from specexp.lm.model import Array, Branches

# Tokens that are fed again together with new ones. A forward of a few more tokens reads the weights once all the same.
MOST_REPLAYED = 16
# Copies of the state: a draft that feeds one token at a time goes back to any of its last tokens without a replay.
MOST_COPIES = 8


class State(Protocol):
    """The recurrent state after some tokens, together with whatever cache grows beside it."""

    def advance(self, tokens: Array, position: int, rows: int, hidden: bool) -> tuple[Array, Array | None]:
        """Continue with tokens[N] at positions position .. position + N - 1; answers as `Session.feed` does."""
        ...

    def copy(self) -> Any:
        """A copy, which later calls do not change."""
        ...

    def restore(self, copy: Any) -> None:
        """Go back to a copy of this state; None: to the beginning. The copy stays valid."""
        ...

    def check_trees(self) -> object:
        """Raise an error that says why there are no trees."""
        ...


class ReplaySession:
    """One sequence, as a `Session`."""

    def __init__(self, state: State, nothing: Array) -> None:
        self._state = state
        self._tokens = nothing  # of all slots; those from `_done` on are not in the state yet
        self._done = 0
        self._copies: list[tuple[int, Any]] = []  # (number of tokens, copy), shortest first
        self.num_replayed = 0

    @property
    def length(self) -> int:
        return int(self._tokens.shape[0])

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        if branches is not None:
            self._state.check_trees()
        assert branches is None, "a recurrent state holds a single sequence"
        start = self.length
        self._tokens = array_namespace(tokens).concat([self._tokens, tokens])
        self.num_replayed += start - self._done
        if start - self._done > MOST_REPLAYED:
            self._advance(start, 0, False)
        self._keep_copy()
        return self._advance(self.length, rows, hidden)

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self.length, f"cannot truncate to {length} of {self.length} slots"
        assert not slots, "a recurrent state keeps no path of a tree"
        self._tokens = self._tokens[:length]
        if length >= self._done:
            return
        while self._copies and self._copies[-1][0] > length:
            self._copies.pop()
        self._done, copy = self._copies[-1] if self._copies else (0, None)
        self._state.restore(copy)

    def slots(self) -> object:
        return tuple(self._tokens.tolist())

    def _advance(self, stop: int, rows: int, hidden: bool) -> tuple[Array, Array | None]:
        answer = self._state.advance(self._tokens[self._done : stop], self._done, rows, hidden)
        self._done = stop
        return answer

    def _keep_copy(self) -> None:
        if self._done and not (self._copies and self._copies[-1][0] == self._done):
            self._copies.append((self._done, self._state.copy()))
            del self._copies[:-MOST_COPIES]
