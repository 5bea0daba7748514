"""A model that counts what it is fed, prefill included: what a whole procedure spent, whoever drove it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specexp.lm.model import Array, Branches, Model, Session


class CountedModel:
    """Passes everything on; `num_calls` and `num_positions` are sums over all its sessions."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.num_calls = 0
        self.num_positions = 0

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def context(self) -> int:
        return self._model.context

    def session(self) -> CountedSession:
        return CountedSession(self, self._model.session())

    def ids(self, tokens: Sequence[int]) -> Array:
        return self._model.ids(tokens)

    def check_trees(self) -> object:
        return self._model.check_trees()

    def facts(self) -> dict[str, Any]:
        return self._model.facts()

    def wait(self) -> None:
        self._model.wait()


class CountedSession:
    """A session of a counted model."""

    def __init__(self, model: CountedModel, session: Session) -> None:
        self._counted = model
        self._session = session

    @property
    def length(self) -> int:
        return self._session.length

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        self._counted.num_calls += 1
        self._counted.num_positions += int(tokens.shape[0])
        return self._session.feed(tokens, rows, hidden, branches)

    def keep(self, length: int, slots: Sequence[int] = ()) -> None:
        self._session.keep(length, slots)

    def slots(self) -> object:
        return self._session.slots()
