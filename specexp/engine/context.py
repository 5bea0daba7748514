"""One model's side of a sequence: which committed tokens its cache holds, and what was fed since the last round."""

from __future__ import annotations

from array_api_compat import array_namespace

from specexp.lm.model import Array, Model


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
        self._fed: list[Array] = []  # the tokens it was given since

    def open(self, ids: list[int]) -> None:
        """Hold ids[:-1], feeding only what the cache does not hold yet. A prompt beyond the context is not fed."""
        common = 0
        for old, new in zip(self._ids[: self._cached], ids[:-1], strict=False):
            if old != new:
                break
            common += 1
        self._ids = list(ids)
        self._begun, self._fed = False, []
        if not self._use_cache:
            return
        self._session.crop(common)
        self._cached = common
        if common < len(ids) - 1 <= self._model.context:
            self._session.feed(self._model.ids(ids[common:-1]), rows=0)
            self._cached = len(ids) - 1

    def feed(self, tokens: Array | None, hidden: bool) -> tuple[Array, Array | None, int]:
        """Feed tokens[N] behind what stands. Returns (logits[R, V], hidden[R, H] or None, positions fed).

        R = N + 1 at the first ask of a round, whose row 0 follows the last committed token, else N.
        """
        rows = (0 if tokens is None else tokens.shape[0]) + (not self._begun)
        if self._use_cache:
            parts = [self._model.ids(self._ids[self._cached :])] if not self._begun else []
            self._cached = len(self._ids)
        else:
            self._session.crop(0)
            parts = [self._model.ids(self._ids), *self._fed]
        self._begun = True
        if tokens is not None:
            parts.append(tokens)
            self._fed.append(tokens)
        fed = parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts)
        logits, states = self._session.feed(fed, rows, hidden)
        return logits, states, fed.shape[0]

    def commit(self, tokens: list[int], num_accepted: int) -> None:
        """Append committed tokens; the first `num_accepted` of them were fed in this order, if they were fed at all."""
        if self._begun and self._use_cache:
            # One committed token stays out, even when all were fed: the next round asks for its row.
            self._cached += min(num_accepted, sum(t.shape[0] for t in self._fed), len(tokens) - 1)
            self._session.crop(self._cached)
        self._begun, self._fed = False, []
        self._ids += tokens

    def fingerprint(self) -> object:
        return self._cached, self._session.slots()
