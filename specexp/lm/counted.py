"""A model that counts what it is fed, prefill included: what a whole procedure spent, whoever drove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specexp.lm.model import Array, Branches, Feed, Model, Session


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

    def sessions(self, count: int, capacity: int = 0) -> list[CountedSession]:
        return [CountedSession(self, session) for session in self._model.sessions(count, capacity)]

    def session(self) -> CountedSession:
        return self.sessions(1)[0]

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        """A call for each sequence: what it would have taken alone."""
        for feed in feeds:
            self.count(feed.tokens)
        sessions = [feed.session for feed in feeds]
        inner = [session.inner for session in sessions if isinstance(session, CountedSession)]
        return self._model.feed([replace(feed, session=each) for feed, each in zip(feeds, inner, strict=True)])

    def count(self, tokens: Array) -> None:
        self.num_calls += 1
        self.num_positions += int(tokens.shape[0])

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
        self.inner = session

    @property
    def length(self) -> int:
        return self.inner.length

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        self._counted.count(tokens)
        return self.inner.feed(tokens, rows, hidden, branches)

    def keep(self, length: int, slots: Sequence[int] = ()) -> None:
        self.inner.keep(length, slots)

    def slots(self) -> object:
        return self.inner.slots()
