"""One model's side of a sequence: which committed tokens its cache holds, and what was fed since the last round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from array_api_compat import array_namespace

from specexp.decoding.protocol import GrownTree, GrowTree, Score
from specexp.decoding.tensor_tree import TreeSizes
from specexp.lm.device_rounds import FeedsThrough, GrowsTrees, Then
from specexp.lm.model import (
    Array,
    Branches,
    Feed,
    Following,
    Model,
    Session,
    StateReader,
    own_text,
)


class Context:
    """Committed ids, a prefix of which is in the session, then the slots fed since the last round.

    The last committed token is never in the cache at the start of a round: the first ask needs its row.
    """

    def __init__(
        self, model: Model, session: Session, cached: bool = True, leader: Context | None = None
    ) -> None:  # fmt: skip
        """With `leader`, another model's context, its session is in the same slots, which hold the same for both, or
        reads the states that the leader's session keeps (`StateReader`)."""
        self._model = model
        self._session = session
        self._own_text = own_text(session)
        self._reader = session if isinstance(session, StateReader) else None
        self._trees = session if isinstance(session, GrowsTrees) else None
        self._through = session if isinstance(session, FeedsThrough) else None
        self._leader = leader
        self._led = self._follows = False  # whether the leader is at the same sequence; and fills the slots
        self._use_cache = cached
        self._ids: list[int] = []
        self._num_cached = 0
        self._begun = False  # whether this round has asked anything yet
        self._fed: list[Array] = []  # without a cache: the tokens of this round, in slots 0, 1, ...
        self._num_slots = 0
        self._parents: list[int] | None = None  # of each slot; -1 is the last committed token; None: all one chain
        self.num_calls = 0  # ever, prefill included
        self.num_positions = 0

    def open(self, ids: list[int], reuse: bool, led: bool = False) -> None:
        """Hold ids[:-1], feeding what the cache does not hold yet; without `reuse` it starts from an empty cache.

        A prompt beyond the context is not fed. With `led`, the leader was opened for the same sequence, and whatever it
        holds need not be fed.
        """
        common = 0
        for old, new in zip(self._ids[: self._num_cached] if reuse else (), ids[:-1], strict=False):
            if old != new:
                break
            common += 1
        self._ids = list(ids)
        self._new_round()
        self._led = led and self._leader is not None and self._use_cache
        if not self._use_cache:
            self._tell()
            return
        self._session.truncate(common)
        self._num_cached = common
        self._tell()
        self._follows = self._led and self._reader is None
        if self._follows:
            self._follow()
        elif common < len(ids) - 1 <= self._model.context:
            self._session.feed(self._model.ids(ids[common:-1]), rows=0)
            self.count(len(ids) - 1 - common)
            self._num_cached = len(ids) - 1

    def forget(self) -> None:
        """Hold nothing, as at the start."""
        self._ids, self._num_cached = [], 0
        self._session.truncate(0)
        self._new_round()

    def plan(self, tokens: Array | None, parents: Sequence[int] | None, hidden: bool) -> Feed:
        """The feed for `tokens`[N] that follow the slots `parents`; the caller must feed it before it plans again.

        The first one of a round gives R = N + 1 rows, where row 0 follows the last committed token; later ones give N.
        """
        if self._follows and self._leader is not None:
            assert not self._leader._begun, "a draft in the target's slots is asked before the target"
        num = 0 if tokens is None else tokens.shape[0]
        if parents is not None or self._parents is not None:
            self._grow(num, parents)
        self._num_slots += num
        rows = num + (not self._begun)
        parts, ids = [], list[int]()
        if not self._use_cache:
            self._session.truncate(0)
            parts = [self._model.ids(self._ids), *self._fed]
            if tokens is not None:
                self._fed.append(tokens)
        elif not self._begun:
            ids = self._ids[self._num_cached :]
            self._num_cached = len(self._ids)
            parts = [self._model.ids(ids)] if tokens is not None else []
        self._begun = True
        if tokens is not None:
            parts.append(tokens)
        elif not parts:  # the host knows all of them
            self.count(len(ids))
            return Feed(self._session, lambda: self._model.ids(ids), rows, hidden, self._branches(), ids)
        fed = parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts)
        self.count(fed.shape[0])
        return Feed(self._session, fed, rows, hidden, self._branches())

    def advance(self, num: int) -> None:
        """Count `num` more tokens of a chain that the model fed by itself, after the planned ones."""
        assert self._use_cache, "without a cache, every token must be planned"
        assert self._parents is None, "a chain cannot follow a tree"
        self._num_slots += num
        self.num_calls += num
        self.num_positions += num

    def takes_tree(self, ask: GrowTree) -> bool:
        """True if the session grows and scores trees of this shape on its device, from this round's start on."""
        if self._trees is None or not self._use_cache or self._begun:
            return False
        return self._trees.takes_tree(ask, self.num_unfed)

    def grow(self, ask: GrowTree, depth: int) -> tuple[GrownTree, int]:
        """The session's tree after the committed tokens, and how many it was fed before: not counted yet."""
        assert self._trees is not None
        fed = self._unfed(TreeSizes.of(ask, ask.width).slots)
        return self._trees.grow(fed, ask, depth), len(fed)

    def feed_tree(self, tree: GrownTree, hidden: bool) -> tuple[tuple[Array, Array | None], int]:
        """What the session scores of a tree, and how many tokens were fed before it: not counted yet."""
        assert self._trees is not None
        fed = self._unfed(tree.depths.shape[0])
        return self._trees.feed_tree(self._model.ids(fed), tree, hidden), len(fed)

    @property
    def begins_round(self) -> bool:
        """True if nothing was asked in this round, and what is fed goes to slots of its own behind cached ones."""
        return self._use_cache and not self._begun and not self._follows

    @property
    def num_unfed(self) -> int:
        """Committed tokens that are not in the cache yet."""
        return len(self._ids) - self._num_cached

    def num_fed(self, ask: Score) -> int:
        """How many tokens are fed for a round's first ask."""
        return self.num_unfed + (0 if ask.tokens is None else len(ask.tokens))

    def takes_through(self, ask: Score) -> bool:
        """True if the session goes on from the round's first ask in the same recording."""
        return self._through is not None and (ask.tree is not None or self._through.takes(self.num_fed(ask)))

    def feed_through(
        self, tokens: Array | None, hidden: bool, then: Then, given: Sequence[Array | int]
    ) -> tuple[Array, Then]:
        """The round's first feed, of tokens[N], and what `then` makes of it."""
        assert self._through is not None
        num = 0 if tokens is None else tokens.shape[0]
        fed = self._unfed(num)
        self.count(len(fed) + num)
        return self._through.feed_through(fed, tokens, hidden, then, given)

    def feed_tree_through(
        self, tree: GrownTree, hidden: bool, then: Then, given: Sequence[Array | int]
    ) -> tuple[Array, Then]:
        """The same of a tree, of which nothing is counted yet."""
        assert self._through is not None
        fed = self._unfed(tree.depths.shape[0])
        return self._through.feed_tree_through(fed, tree, hidden, then, given)

    def _unfed(self, num_slots: int) -> list[int]:
        """The committed tokens that are not in the cache yet, which are fed before `num_slots` slots."""
        fed = self._ids[self._num_cached :]
        self._num_cached, self._begun, self._num_slots = len(self._ids), True, num_slots
        return fed

    def announce(self, tokens: Sequence[int], drafted: bool = False) -> None:
        """Say which tokens are scored next, after the committed ones, to a model that reads their text, or the states
        of it; the target has no states yet of `drafted` ones."""
        if self._own_text is not None:
            self._own_text.told([*self._ids, *tokens])
        if self._reader is not None:
            self._reader.read([*self._ids, *(() if drafted else tokens)], None)

    def _tell(self) -> None:
        if self._own_text is not None:
            self._own_text.told(self._ids)
        if self._reader is not None:
            self._reader.read(self._ids, self._leader._session if self._led and self._leader else None)

    def wrote(self, positions: Sequence[int]) -> None:
        """Count forwards that the session made by itself, with so many positions each."""
        for each in positions:
            self.count(each)

    @property
    def room(self) -> int:
        """How many more tokens fit the model's context."""
        return self._model.context - len(self._ids) if self._own_text is None else self._own_text.room

    @property
    def session(self) -> Session:
        return self._session

    @property
    def model_name(self) -> str:
        """For messages."""
        facts = self._model.facts()
        return str(facts.get("model", facts["class"]))

    @property
    def num_slots(self) -> int:
        """Slots fed since the last round."""
        return self._num_slots

    def depths(self, rows: int) -> list[int]:
        """How many tokens after the last committed one each of the last `rows` rows of the round is; row 0 is at 0."""
        parents = list(range(-1, self._num_slots - 1)) if self._parents is None else self._parents
        result = [0]  # of slot -1, the last committed token
        for parent in parents:
            result.append(result[parent + 1] + 1)
        return result[len(result) - rows :]

    def _grow(self, num: int, parents: Sequence[int] | None) -> None:
        """Record the parents of the next `num` slots; earlier slots of the round without parents are a chain."""
        known = list(range(-1, self._num_slots - 1)) if self._parents is None else self._parents
        newest = self._num_slots - 1
        if parents is not None:
            assert all(-1 <= p < newest + 1 + i for i, p in enumerate(parents)), "a parent is not fed yet"
        self._parents = [*known, *(range(newest, newest + num) if parents is None else parents)]

    def _branches(self) -> Branches | None:
        """None while all slots of the round are one chain."""
        if self._parents is None or self._parents == list(range(-1, self._num_slots - 1)):
            return None
        paths: list[list[int]] = []
        for slot, parent in enumerate(self._parents):
            paths.append([*(paths[parent] if parent >= 0 else []), slot])
        return Branches(len(self._ids), [len(path) - 1 for path in paths], paths)

    def commit(self, tokens: list[int], kept: Sequence[int]) -> None:
        """Append committed tokens; `kept` are their slots, in order, as far as they were fed."""
        if self._follows:
            self._follow()
        elif self._begun and self._use_cache:
            # The last committed token stays out of the cache, even if it was fed: the next round asks for its row.
            slots = [slot for slot in kept if slot < self._num_slots][: len(tokens) - 1] if not self._reader else []
            if slots == list(range(len(slots))):
                self._session.truncate(self._num_cached + len(slots))
            else:
                self._session.truncate(self._num_cached, [self._num_cached + slot for slot in slots])
            self._num_cached += len(slots)
        self._new_round()
        self._ids += tokens
        self._tell()

    def _follow(self) -> None:
        """Hold what the leader holds, which has committed the same tokens."""
        leader, session = self._leader, self._session
        assert leader is not None
        cast(Following, session).follow(leader._session)  # no isinstance: of a protocol it takes as long as an ask
        self._num_cached = leader._num_cached

    def count(self, positions: int, calls: int = 1) -> None:
        """Count forwards of so many positions in all."""
        self.num_calls += calls
        self.num_positions += positions

    def _new_round(self) -> None:
        self._begun, self._fed, self._parents, self._num_slots = False, [], None, 0

    def fingerprint(self) -> object:
        return self._num_cached, self._session.slots()
