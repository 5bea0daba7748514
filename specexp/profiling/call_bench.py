"""Makes the calls whose seconds `call_costs.py` reports, in the order in which decoding makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from specexp.decoding.protocol import Draft, GrowTree, Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.lm.device_rounds import GrowsTrees
from specexp.lm.model import (
    Array,
    Branches,
    Drafts,
    DraftsBlocks,
    Feed,
    Follower,
    Model,
    Session,
    StateReader,
)
from specexp.lm.text_drafts import TextModel
from specexp.profiling.timers import EventTimer, Seconds, mean_of, timer_for

ROW = 4  # plain steps in a row


@dataclass(frozen=True, slots=True)
class TreeRound:
    """The shape of a tree: `nodes` verified on `depth` levels, grown in draft calls on `width` nodes."""

    nodes: int
    depth: int
    width: int


Key = tuple[str, int]  # kind of call, its positions


class CallBench:
    """Times calls on sessions that are rewound to `ids` after each measurement."""

    def __init__(self, models: Mapping[Role, Model], ids: Sequence[int], clock: Callable[[], float]) -> None:
        # A draft that writes text makes forwards of its own model.
        self._models: dict[Role, Model] = {
            role: model.inner if isinstance(model, TextModel) else model for role, model in models.items()
        }
        self._ids = ids
        self._timers = {role: timer_for(model, clock) for role, model in self._models.items()}
        self._sessions: dict[Role, Session] = {role: model.session() for role, model in self._models.items()}
        draft: object = self._sessions.get("draft")
        self._reader = draft if isinstance(draft, StateReader) else None
        inner: object = self._models.get("draft")
        in_targets_slots = isinstance(inner, Follower) and inner.follows  # which hold all that is committed
        self._catches_up = inner is not None and not in_targets_slots
        for role in sorted(self._sessions, reverse=True):  # the target before a draft that reads its states
            if role == "draft":
                self._commit(0)
            self._sessions[role].feed(self._some(role, len(ids)), rows=0)

    def plain(self) -> Iterator[tuple[Key, Seconds]]:
        self._timed("target", [1] * ROW)
        self._rewind()
        yield ("target", 1), self._timed("target", [1] * ROW)
        self._rewind()

    def steps(self) -> Iterator[tuple[Key, Seconds]]:
        if "draft" in self._models:
            yield ("draft", 1), self._drafted_in_steps(ROW)
            self._rewind()

    def chain(self, gamma: int) -> Iterator[tuple[Key, Seconds]]:
        """Two rounds, the first one's own calls untimed: a round that commits one token, and one that commits all."""
        for committed in (1, gamma + 1):
            draft = self._drafted(gamma) if "draft" in self._models else None
            target = self._timed("target", [gamma + 1])
            if self._catches_up:
                yield ("catch_up", committed), self._taken_in(committed)
            self._rewind()
            if committed > 1 and draft is not None:
                yield ("draft", 1), draft
            if committed > 1:
                yield ("target", gamma + 1), target

    def two_committed(self) -> Iterator[tuple[Key, Seconds]]:
        """A round that commits two tokens, which is what a draft model most often takes in."""
        if self._catches_up:
            self._timed("target", [2])
            yield ("catch_up", 2), self._taken_in(2)
            self._rewind()

    def _taken_in(self, tokens: int) -> Seconds:
        """Seconds of the draft's first call after a round that committed so many tokens, whose states it may read."""
        self._sessions["target"].truncate(len(self._ids) + tokens - 1)  # the newest one is never in it
        self._sessions["draft"].truncate(len(self._ids))
        self._commit(tokens)
        return self._timed("draft", [tokens], rows=1)

    def _commit(self, tokens: int) -> None:
        """Tell a draft that reads the target's states how many tokens are committed after `ids`."""
        if self._reader is not None:
            ids = [*self._ids, *self._tokens("target", tokens)]
            self._reader.read(ids, self._sessions.get("target"))

    def tree(self, tree: TreeRound) -> Iterator[tuple[Key, Seconds]]:
        base = len(self._ids) + 1  # after the root
        self._commit(1)
        if "draft" in self._sessions and (both := self._on_device(tree)) is not None:
            yield from self._grown(tree, *both)
            self._rewind()
            return
        if tree.depth > 1 and "draft" in self._sessions:
            self._timed("draft", [1])
            levels = [_levels(base, tree.width * i, tree.width) for i in range(1, tree.depth)]
            yield ("tree_draft", tree.width), self._timed("draft", [tree.width] * len(levels), levels)
        whole = _levels(base, tree.nodes, -(-tree.nodes // tree.depth))
        yield ("tree_target", tree.nodes + 1), self._timed("target", [tree.nodes + 1], [whole])
        self._rewind()

    def _on_device(self, tree: TreeRound) -> tuple[GrowsTrees, GrowsTrees] | None:
        """The sessions of draft and target, if the one grows such a tree on its device and the other scores it."""
        draft, target = self._sessions["draft"], self._sessions["target"]
        ask = GrowTree(tree.nodes, tree.depth, tree.width, tree.width)
        if not (isinstance(draft, GrowsTrees) and isinstance(target, GrowsTrees)):
            return None
        if not (draft.takes_tree(ask, 1) and target.takes_tree(ask, 1)):
            return None
        return draft, target

    def _grown(self, tree: TreeRound, draft: GrowsTrees, target: GrowsTrees) -> Iterator[tuple[Key, Seconds]]:
        """A round whose tree is grown in one go; a level costs what the growth does without the root's call."""
        ask = GrowTree(tree.nodes, tree.depth, tree.width, tree.width)
        root = self._timed("draft", [1])
        self._rewind()
        ids, fed = self._tokens("draft", 1), self._some("target", 1)
        timing = self._timers["draft"].start()
        grown = draft.grow(ids, ask, tree.depth)
        growth = timing.stop()
        timing = self._timers["target"].start()
        target.feed_tree(fed, grown, False)
        scored = timing.stop()
        if tree.depth > 1:
            yield ("tree_draft", tree.width), mean_of(lambda: max(0.0, growth() - root()), tree.depth - 1)
        yield ("tree_target", tree.nodes + 1), scored

    @property
    def by_events(self) -> bool:
        """True if all calls are timed on the device."""
        return all(isinstance(timer, EventTimer) for timer in self._timers.values())

    def _timed(
        self, role: Role, sizes: Sequence[int], branches: Sequence[Branches] | None = None, rows: int | None = None
    ) -> Seconds:
        """Mean seconds per call of a series of calls, one for each size; rows of all positions, or so many of each."""
        session = self._sessions[role]
        fed = [self._some(role, size) for size in sizes]
        all_branches: Sequence[Branches | None] = branches or [None] * len(sizes)
        timing = self._timers[role].start()
        for tokens, each in zip(fed, all_branches, strict=True):
            session.feed(tokens, tokens.shape[0] if rows is None else rows, False, each)
        return mean_of(timing.stop(), len(sizes))

    def _drafted(self, gamma: int) -> Seconds:
        """Mean seconds per step of a chain, drafted as in decoding."""
        model, ask, rng = self._models["draft"], Draft(gamma, Warp()), CertainRng()
        if not (isinstance(model, Drafts) and model.drafts(ask, rng)):
            return self._drafted_in_steps(gamma)
        self._commit(1)
        feed = Feed(self._sessions["draft"], self._some("draft", 1), 1)
        timing = self._timers["draft"].start()
        model.draft(feed, ask, gamma, rng, 0)
        return mean_of(timing.stop(), gamma)

    def _drafted_in_steps(self, steps: int) -> Seconds:
        """Mean seconds per step after the newest committed token; of a block, if the draft makes one in a call."""
        self._commit(1)
        return self._timed("draft", [1] * (1 if isinstance(self._models["draft"], DraftsBlocks) else steps))

    def _some(self, role: Role, count: int) -> Array:
        """`count` tokens that the model knows."""
        return self._models[role].ids(self._tokens(role, count))

    def _tokens(self, role: Role, count: int) -> list[int]:
        return [self._ids[i % len(self._ids)] % self._models[role].vocab_size for i in range(count)]

    def _rewind(self) -> None:
        for session in self._sessions.values():
            session.truncate(len(self._ids))


def _levels(base: int, num: int, width: int) -> Branches:
    """`num` nodes after slot base - 1, where the parent of each is the node `width` places before it."""
    paths: list[list[int]] = []
    for i in range(num):
        paths.append([*(paths[i - width] if i >= width else []), i])
    return Branches(base, [len(path) - 1 for path in paths], paths)
