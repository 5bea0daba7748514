"""Optional interfaces of sessions that keep a round on their device: trees that grow, rounds that are made there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from specexp.decoding.protocol import GrownTree, GrowTree
from specexp.lm.model import Array, Feed, Session


@runtime_checkable
class GrowsTrees(Protocol):
    """A session of a model that grows whole token trees on its device, and scores those that another one grew there."""

    def takes_tree(self, ask: GrowTree, num: int) -> bool:
        """True if it can do both with a tree of this shape, after `num` tokens that it was not fed yet."""
        ...

    def grow(self, ids: Sequence[int], ask: GrowTree, depth: int) -> GrownTree:
        """Feed ids[n] and grow a tree after the last one, of at most `depth` levels, without reading a value."""
        ...

    def feed_tree(self, tokens: Array, tree: GrownTree, hidden: bool) -> tuple[Array, Array | None]:
        """Append tokens[n] as a chain and the places[K] of a tree after the last one, padding included.

        Returns logits[K + 1, V] for the last of `tokens` and the places and, with `hidden`, their final states.
        """
        ...


# A pure function of the N tokens that were fed last[N], logits[N + 1, V] of the token before them and each of them,
# hidden[N + 1, H] or None, and further arrays. It is hashable, and equals others that compute the same.
Then = Callable[..., Array]


@runtime_checkable
class FeedsThrough(Protocol):
    """A session that records functions of what it scores together with the forward."""

    def takes(self, num: int) -> bool:
        """True if it can with `num` tokens."""
        ...

    def feed_through(
        self, ids: Sequence[int], tokens: Array | None, hidden: bool, then: Then, given: Sequence[Array | int]
    ) -> tuple[Array, Then]:
        """Feed a chain of `ids` and tokens[N], and go on with `then`, which is given `given`, ints as arrays[1].

        Returns what it made, which later calls overwrite, and the function, equal to `then`, that was recorded.
        """
        ...

    def feed_tree_through(
        self, ids: Sequence[int], tree: GrownTree, hidden: bool, then: Then, given: Sequence[Array | int]
    ) -> tuple[Array, Then]:
        """The same of `ids` and a tree, as `GrowsTrees.feed_tree`: the tokens are the tree's places[K]."""
        ...


@runtime_checkable
class FeedsThroughTogether(Protocol):
    """Optional interface of a model that does the same for several sessions.

    Each is fed as many tokens before the N that its function is told of; what a session is fed less than the longest is
    padding at the end, for the function, too.
    """

    def takes_together(self, sessions: Sequence[Session], num: int) -> bool:
        """True if it can for these, with at most `num` tokens of each."""
        ...

    def feed_through(
        self, feeds: Sequence[Feed], then: Then, given: Sequence[Sequence[Array | int]]
    ) -> tuple[Array, Then]:
        """Feed chains, and go on with `then` for each, given its part of `given`.

        Returns what it made of each, of equal sizes, one after the other, and the function that was recorded.
        """
        ...
