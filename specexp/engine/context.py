"""One model's side of a sequence: which committed tokens its cache holds, and what was fed since the last round."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace

from specexp.lm.model import Array, Branches, Model


class Context:
    """Committed ids, of which the first `cached` are in the session, then the slots fed since the last round.

    The last committed token is never in the cache at the start of a round: its row is what the first ask wants.
    """

    def __init__(self, model: Model, cached: bool = True) -> None:
        self._model = model
        self._session = model.session()
        self._use_cache = cached
        self._ids: list[int] = []
        self._cached = 0
        self._begun = False  # whether this round has asked anything yet
        self._fed: list[Array] = []  # the tokens it was given since, in slots 0, 1, ...
        self._parents: list[int] = []  # of each slot; -1 is the last committed token

    def open(self, ids: list[int]) -> None:
        """Hold ids[:-1], feeding only what the cache does not hold yet. A prompt beyond the context is not fed."""
        common = 0
        for old, new in zip(self._ids[: self._cached], ids[:-1], strict=False):
            if old != new:
                break
            common += 1
        self._ids = list(ids)
        self._begun, self._fed, self._parents = False, [], []
        if not self._use_cache:
            return
        self._session.keep(common)
        self._cached = common
        if common < len(ids) - 1 <= self._model.context:
            self._session.feed(self._model.ids(ids[common:-1]), rows=0)
            self._cached = len(ids) - 1

    def feed(
        self, tokens: Array | None, parents: Sequence[int] | None, hidden: bool
    ) -> tuple[Array, Array | None, int]:
        """Feed tokens[N] behind the slots `parents`. Returns (logits[R, V], hidden[R, H] or None, positions fed).

        R = N + 1 at the first ask of a round, whose row 0 follows the last committed token, else N.
        """
        num = 0 if tokens is None else tokens.shape[0]
        newest = len(self._parents) - 1
        chain = range(newest, newest + num)
        assert parents is None or all(-1 <= p < newest + 1 + i for i, p in enumerate(parents)), (
            "a parent is not fed yet"
        )
        self._parents += chain if parents is None else parents
        rows = num + (not self._begun)
        if self._use_cache:
            parts = [] if self._begun else [self._model.ids(self._ids[self._cached :])]
            self._cached = len(self._ids)
        else:
            self._session.keep(0)
            parts = [self._model.ids(self._ids), *self._fed]
        self._begun = True
        if tokens is not None:
            parts.append(tokens)
            self._fed.append(tokens)
        fed = parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts)
        logits, states = self._session.feed(fed, rows, hidden, self._branches())
        return logits, states, fed.shape[0]

    @property
    def num_slots(self) -> int:
        """Slots fed since the last round."""
        return len(self._parents)

    def _branches(self) -> Branches | None:
        """None while all slots of the round are one chain."""
        if all(parent == slot - 1 for slot, parent in enumerate(self._parents)):
            return None
        paths: list[list[int]] = []
        for slot, parent in enumerate(self._parents):
            paths.append([*(paths[parent] if parent >= 0 else []), slot])
        return Branches(len(self._ids), [len(path) - 1 for path in paths], paths)

    def commit(self, tokens: list[int], kept: Sequence[int]) -> None:
        """Append committed tokens; `kept` are the slots they stand in, in order, as far as they were fed."""
        if self._begun and self._use_cache:
            # One committed token stays out, even when all were fed: the next round asks for its row.
            slots = [slot for slot in kept if slot < len(self._parents)][: len(tokens) - 1]
            if slots == list(range(len(slots))):
                self._session.keep(self._cached + len(slots))
            else:
                self._session.keep(self._cached, [self._cached + slot for slot in slots])
            self._cached += len(slots)
        self._begun, self._fed, self._parents = False, [], []
        self._ids += tokens

    def fingerprint(self) -> object:
        return self._cached, self._session.slots()
