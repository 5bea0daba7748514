"""The narrow boundary behind which every language model sits: the numpy toy and Hugging Face models alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from array_api_compat import array_namespace

from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import Rng

Array = Any


@dataclass(frozen=True, slots=True)
class Branches:
    """Where fed tokens stand when they are no chain.

    Slots below `base` are a chain that everything behind it sees. A token in slot base + i stands at position
    base + depths[i] and sees, behind the base, the slots base + a for a in ancestors[i] (itself included) and no other.
    """

    base: int
    depths: Sequence[int]
    ancestors: Sequence[Sequence[int]]


class Session(Protocol):
    """One sequence in one model's KV cache: a row of slots that grows at its end and can be cut back."""

    @property
    def length(self) -> int:
        """Slots in the cache."""
        ...

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        """Append tokens[N] in slots length .. length + N - 1: a chain in which each sees all before it, or `branches`.

        Returns what follows the last `rows` of them: logits[rows, V] and, if asked, the last layer after its norm
        [rows, H]. With rows = 0 the logits are empty.
        """
        ...

    def keep(self, length: int, slots: Sequence[int] = ()) -> None:
        """Keep the first `length` slots and behind them `slots`, in this order; forget every other."""
        ...

    def slots(self) -> object:
        """What the cache holds, as something that can be compared and hashed: equal means decoding goes on alike."""
        ...


@dataclass(slots=True, eq=False)  # made at every step: a frozen one takes thrice as long
class Feed:
    """What one session is to be fed: the arguments of `Session.feed`."""

    session: Session
    tokens: Array
    rows: int
    hidden: bool = False
    branches: Branches | None = None


CHUNK = 256  # tokens of a prefill that go through a model together


def in_pieces(
    feed: Callable[[Array, int, bool], tuple[Array, Array | None]], parts: Sequence[Array], rows: int, hidden: bool
) -> tuple[Array, Array | None]:
    """`Session.feed` of a long chain, part by part: what lies between a model's layers stays small."""
    left, found = sum(part.shape[0] for part in parts), []
    for part in parts:
        left -= part.shape[0]
        wanted = min(max(rows - left, 0), part.shape[0])
        answer = feed(part, wanted, hidden)
        if wanted or not left:
            found.append(answer)
    if len(found) == 1:
        return found[0]
    concat = array_namespace(found[0][0]).concat
    return concat([logits for logits, _ in found]), concat([states for _, states in found]) if hidden else None


def one_by_one(feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
    """Each feed by itself: `Model.feed` of a model that has no way to feed several together."""
    return [feed.session.feed(feed.tokens, feed.rows, feed.hidden, feed.branches) for feed in feeds]


class Model(Protocol):
    """A causal language model."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context(self) -> int:
        """The most positions a sequence may have."""
        ...

    def sessions(self, count: int, capacity: int = 0) -> Sequence[Session]:
        """Empty caches that may be fed together; room for `capacity` slots each is there from the start."""
        ...

    def session(self) -> Session:
        """One empty cache."""
        ...

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        """Feed sessions of one `sessions` call, in one forward where the model can. Answers as `Session.feed`."""
        ...

    def ids(self, tokens: Sequence[int]) -> Array:
        """Host token ids as an integer array on the model's device."""
        ...

    def check_trees(self) -> object:
        """Raise ModelError when its sessions take no `branches`."""
        ...

    def facts(self) -> dict[str, Any]:
        """What was loaded and where it runs, as JSON."""
        ...

    def wait(self) -> None:
        """Return once the device has done all it was asked for; clocks read around this."""
        ...


@runtime_checkable
class Drafts(Protocol):
    """What a model may offer besides: a chain drafted in one go, sampling included, by a session that is fed alone."""

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        """Whether it answers this ask; if not, the chain is drafted step by step."""
        ...

    def draft(self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int) -> Drafted:
        """The chain of `length` <= gamma tokens behind those of `feed`, the first of which is drawn at `position`.

        They are fed, and all drafted tokens but the last; with `own`, that one too.
        """
        ...
