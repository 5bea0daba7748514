"""A draft that writes text: its own likeliest tokens, whose text is split into the target's (SLEM, 2502.05202).

A token is accepted if it is the one that the target draws at that position (`rules.verify_match`). What follows the
last whole token of the target stays in the cache for the next round.

Shapes: N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace, device

from specexp.decoding.protocol import Draft
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.lm.model import Array, Branches, Drafts, Feed, Session, one_by_one
from specexp.lm.runtime import TEXT
from specexp.lm.translated import OwnTokens, Translated


class TextSession(OwnTokens):
    """One sequence, of which the draft writes the next text. Its slots are the target's tokens, which hold nothing."""

    def __init__(self, inner: Session, model: TextModel) -> None:
        super().__init__(inner, model)
        self._length = 0
        self._written: list[int] = []  # what the cache holds, and one more that was drafted last

    @property
    def length(self) -> int:
        return self._length

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        """Read committed text: a prompt before it is continued. No rows can be asked for."""
        assert not rows, "a draft that writes text scores none of the target's tokens"
        self._length += tokens.shape[0]
        own = self.own(self._length)[: self._model.inner.context]
        self._written = []
        rest = self.fresh(own, False)
        if rest.shape[0]:
            self.inner.feed(rest, 0)
        xp = array_namespace(tokens)
        return xp.zeros((0, self._model.vocab_size), dtype=xp.float32, device=device(tokens)), None

    def write(self, count: int, gamma: int) -> tuple[list[int], list[int]]:
        """At most `count` <= gamma of the target's tokens that the draft writes after the committed ones; and the
        number of positions of each of its forwards.

        It writes one of its own tokens more, behind which text is whole. What it wrote in the last round and still
        fits the text is not written again.
        """
        translation, inner = self._model.translation, self._model.inner
        own = self.own(len(self._ids))
        ahead = self._written[len(own) :] if self._written[: len(own)] == own else []
        wanted = 0 if any(map(translation.ends, ahead)) else max(0, count + 1 - len(ahead))
        steps, calls = min(wanted, inner.context - len(own) - len(ahead) + 1), []
        if steps > 0:
            given = self.fresh(own + ahead, True)
            ahead = ahead + self._likeliest(given, steps, gamma + 1)
            self._cached = self._written = own + ahead
            self._cached = self._cached[:-1]
            calls = [given.shape[0], *[1] * (steps - 1)]
        return translation.continued(self._ids, ahead)[:count], calls

    def _likeliest(self, tokens: Array, steps: int, gamma: int) -> list[int]:
        """The draft's likeliest tokens after tokens[N], read to the host together."""
        inner, drawn = self._model.inner, []
        ask, rng, feed = Draft(gamma, Warp()), CertainRng(), Feed(self.inner, tokens, 1)
        if isinstance(inner, Drafts) and inner.drafts(ask, rng):
            return [int(token) for token in inner.draft(feed, ask, steps, rng, 0).tokens.tolist()]
        for _ in range(steps):
            ((logits, _),) = inner.feed([feed])
            drawn.append(ask.warp.first(logits))
            feed = Feed(self.inner, drawn[-1], 1)
        return [int(token) for token in array_namespace(tokens).concat(drawn).tolist()]

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        self._length = length + len(slots)
        if not self._length:  # a new sequence, which begins without anything
            self.inner.truncate(0)
            self._cached, self._written = [], []

    def slots(self) -> object:
        return self._length, tuple(self._written), tuple(self._cached), self.inner.slots()


@dataclass(slots=True, eq=False)
class TextModel(Translated):
    """The draft as a writer of text (SLEM)."""

    vocabulary = TEXT

    def sessions(self, count: int, capacity: int = 0) -> list[TextSession]:
        return [TextSession(each, self) for each in self.inner.sessions(count, capacity)]

    def session(self) -> TextSession:
        return self.sessions(1)[0]

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        return one_by_one(feeds)
