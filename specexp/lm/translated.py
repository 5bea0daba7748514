"""A draft model with another tokenizer, as a model of the target's tokens (Timor et al. 2502.05202).

Committed text is read in the draft's own tokens: at each round the session is told the target's ids (`told`), brings
them into its own, and feeds what its cache does not hold, from where the two differ on.

`IntersectedModel` (TLI) drafts from the draft's distribution over the tokens that both vocabularies have, renormalised.
Drafted tokens are common ones, so each is one of the draft's own; they are verified as any draft's are. The other kind,
in `text_drafts.py`, needs no token in common.

Shapes: V the target's vocabulary, N tokens, R rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from specexp.lm.model import Array, Branches, Feed, Session, one_by_one
from specexp.lm.own_text import SettledText, Translation, common_prefix
from specexp.lm.runtime import INTERSECTION


class OwnTokens:
    """The cache of a draft that reads the text in its own tokens."""

    def __init__(self, inner: Session, model: Translated) -> None:
        self.inner, self._model = inner, model
        self._ids: list[int] = []  # committed, the target's
        self._cached: list[int] = []  # the draft's ids in its cache, without drafts of a round that goes on
        self._own: tuple[int, list[int]] = (0, [])  # number of the target's ids, and these in the draft's
        self._settled = SettledText()

    def own(self, count: int) -> list[int]:
        """The first `count` committed ids in the draft's own."""
        if self._own[0] != count:
            self._settled.cut(count)
            self._own = count, self._settled.read(self._ids[:count], self._model.translation)
        return self._own[1]

    def told(self, ids: Sequence[int]) -> None:
        """Be told all committed ids."""
        ids = list(ids)
        self._settled.cut(common_prefix(self._ids, ids))
        self._ids, self._own = ids, (0, [])

    @property
    def room(self) -> int:
        """How many more tokens fit the draft's context; less than 0 if the draft has no token to follow."""
        own = self.own(len(self._ids))
        return int(self._model.inner.context) - len(own) if own else -1

    def fresh(self, own: list[int], needs_row: bool) -> Array:
        """Truncate the cache to what it has in common with `own`, and return the rest, which is to be fed."""
        common = common_prefix(self._cached, own)
        if needs_row:
            common = min(common, len(own) - 1)
        self.inner.truncate(common)
        self._cached = list(own)
        return self._model.inner.ids(own[common:])


class IntersectedSession(OwnTokens):
    """One sequence; its slots are the target's tokens, committed ones and then drafts, which have one slot each."""

    def __init__(self, inner: Session, model: IntersectedModel) -> None:
        super().__init__(inner, model)
        self._intersected = model
        self._length = self._base = 0  # slots, and those of them that are committed tokens

    @property
    def length(self) -> int:
        return self._length

    def told(self, ids: Sequence[int]) -> None:
        common = self._model.translation.common
        self._cached += [common[token] for token in ids[self._base : self._length]]
        self._base = self._length
        super().told(ids)

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        num, parts = tokens.shape[0], []
        if not num:
            return self._intersected.answer(self.inner.feed(tokens, 0, hidden))
        inside = self._inside(num)
        # Every row that is read within the committed text needs that text by itself.
        first = self._length + inside - max(0, rows - (num - inside))
        for count in range(max(1, first + 1), self._length + inside) if inside else ():
            parts.append(self.inner.feed(self.fresh(self.own(count), True), 1, hidden))
        if inside:
            parts.append(self._feed(self.prepared(tokens[:inside], int(rows > num - inside), hidden, None)))
        if num > inside:
            parts.append(self._feed(self.prepared(tokens[inside:], min(rows, num - inside), hidden, branches)))
        concat = array_namespace(parts[0][0]).concat
        logits = concat([logits for logits, _ in parts])
        return self._intersected.answer((logits, concat([h for _, h in parts if h is not None]) if hidden else None))

    def is_simple(self, num: int, rows: int) -> bool:
        """True if this can be answered by one feed of the draft's session: `prepared`."""
        inside = self._inside(num)
        return num > 0 and (not inside or (inside == num and rows <= 1))

    def prepared(self, tokens: Array, rows: int, hidden: bool, branches: Branches | None) -> Feed:
        """The feed of the draft's session for tokens that are all committed, or all drafted."""
        num = tokens.shape[0]
        if self._inside(num):
            own = self.own(self._length + num)
            self._length += num
            self._base = self._length
            if len(own) > self._model.inner.context:  # nothing is drafted after it
                own = own[: self._model.inner.context]
            return Feed(self.inner, self.fresh(own, rows > 0), rows, hidden)
        self._length += num
        if branches is not None:
            branches = replace(branches, base=branches.base + len(self._cached) - self._base)
        return Feed(self.inner, self._intersected.own_ids(tokens), rows, hidden, branches)

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self._length, f"cannot truncate to {length} of {self._length} slots"
        if not length:  # a new sequence, which begins without anything
            self.inner.truncate(0)
            self._cached, self._base, self._length = [], 0, 0
            return
        behind = len(self._cached) - self._base  # from a drafted slot to the draft's own
        if length >= self._base:
            self.inner.truncate(length + behind, [slot + behind for slot in slots])
        else:  # what the cache holds beyond it is compared with what comes
            self.inner.truncate(len(self._cached))
            self._base = length
        self._length = length + len(slots)

    def slots(self) -> object:
        return self._length, self._base, tuple(self._cached), self.inner.slots()

    def _inside(self, num: int) -> int:
        """How many of the next `num` tokens are committed."""
        return max(0, min(num, len(self._ids) - self._length))

    def _feed(self, feed: Feed) -> tuple[Array, Array | None]:
        if feed.tokens.shape[0]:
            return self.inner.feed(feed.tokens, feed.rows, feed.hidden, feed.branches)
        xp = array_namespace(feed.tokens)  # the cache holds all of it, and no row was asked for
        size = self._model.inner.vocab_size
        return xp.zeros((0, size), dtype=xp.float32, device=device(feed.tokens)), None


@dataclass(slots=True, eq=False)
class Translated:
    """What both kinds of models have in common. `inner` is the draft, with its own tokens."""

    vocabulary: ClassVar[str]  # how its tokens become the target's
    inner: Any  # a `Model`, that of Hugging Face or the toy
    translation: Translation
    vocab_size: int  # the target's

    @property
    def context(self) -> int:
        return int(self.inner.context)

    def ids(self, tokens: Sequence[int]) -> Array:
        return self.inner.ids(tokens)

    def check_cache(self) -> None:
        self.inner.check_cache()

    def check_trees(self) -> object:
        return self.inner.check_trees()

    def wait(self) -> None:
        self.inner.wait()

    def facts(self) -> dict[str, Any]:
        common = sum(token >= 0 for token in self.translation.common)
        return {
            **self.inner.facts(),
            "vocabulary": self.vocabulary,
            "own_vocab_size": self.inner.vocab_size,
            "common_tokens": common,
        }

    @property
    def notes(self) -> list[str]:
        return list(getattr(self.inner, "notes", ()))

    @property
    def module(self) -> Any:
        return self.inner.module


@dataclass(slots=True, eq=False)
class IntersectedModel(Translated):
    """The draft over the common tokens: logits[R, V], minus infinity for tokens that it has not (TLI)."""

    vocabulary = INTERSECTION
    _tables: tuple[Array, Array] | None = field(init=False, default=None)

    def sessions(self, count: int, capacity: int = 0) -> list[IntersectedSession]:
        return [IntersectedSession(each, self) for each in self.inner.sessions(count, capacity)]

    def session(self) -> IntersectedSession:
        return self.sessions(1)[0]

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        sessions = [feed.session for feed in feeds if isinstance(feed.session, IntersectedSession)]
        if not all(s.is_simple(f.tokens.shape[0], f.rows) for s, f in zip(sessions, feeds, strict=True)):
            return one_by_one(feeds)
        prepared = [
            session.prepared(feed.tokens, feed.rows, feed.hidden, feed.branches)
            for session, feed in zip(sessions, feeds, strict=True)
        ]
        return [self.answer(result) for result in self.inner.feed(prepared)]

    def answer(self, result: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        """Logits [R, V] from the draft's own."""
        logits, hidden = result
        xp = array_namespace(logits)
        own, has = self._of_target(logits)
        there = xp.take(logits, own, axis=1)
        return xp.where(has[None, :], there, xp.full_like(there, float("-inf"))), hidden

    def own_ids(self, tokens: Array) -> Array:
        """Drafted tokens[N] in the draft's ids."""
        return array_namespace(tokens).take(self._of_target(tokens)[0], tokens)

    def _of_target(self, like: Array) -> tuple[Array, Array]:
        """The draft's id of each of the target's tokens (0 where it has none), and whether it has one."""
        if self._tables is None:
            xp = array_namespace(like)
            own = xp.asarray(list(self.translation.common), dtype=xp.int64, device=device(like))
            self._tables = xp.clip(own, 0, None), own >= 0
        return self._tables
