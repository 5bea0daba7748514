"""Measures the seconds of a draft step and of a target call on n positions, in the order in which decoding makes them.

Only forwards are timed, without sampling or accepting, so that a method's other costs show as unrealised speed. Plain
steps are timed in a row, as in plain decoding; draft calls and verifying calls in rounds, since a model that runs after
another one finds fewer of its weights in the CPU's caches. A draft that makes its chain in one call is timed that way,
greedily, with its argmax. For the same reason, an untimed row or round of the same kind precedes each timed one. The
first draft call of a round takes in what was committed since the last one: a few tokens are timed as that, too.
Chains and trees are measured separately, since a tree's call takes a mask.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.protocol import Draft, Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.lm.model import Array, Branches, Drafts, DraftsBlocks, Feed, Follower, Model, Session, StateReader
from specexp.lm.text_drafts import TextModel

ROW = 4  # plain steps in a row
WARM_UP = 1
RELATIVE_REPEATS = 24  # for drafts that adapt
PATIENCE = 60.0  # seconds after which no further repeat starts: calls that take so long vary less


@dataclass(frozen=True, slots=True)
class TreeRound:
    """The shape of a tree: `nodes` verified on `depth` levels, grown in draft calls on `width` nodes."""

    nodes: int
    depth: int
    width: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one call by its number of positions, with linear interpolation between measured sizes.

    `draft_step` is a draft call on one position, None if no draft was loaded; `target` includes the size 1;
    `tree_draft` is by the number of nodes, `tree_target` by the number of positions. `catch_up` is the draft call that
    begins a chain, by the committed tokens that it takes in; profiles of earlier versions have none. With `block`, a
    draft call drafts a whole chain.
    """

    draft_step: float | None
    target: Mapping[int, float]
    tree_draft: Mapping[int, float] = field(default_factory=dict)
    tree_target: Mapping[int, float] = field(default_factory=dict)
    catch_up: Mapping[int, float] = field(default_factory=dict)
    block: bool = False

    @property
    def c(self) -> float:
        """Draft step / target step."""
        return self.c_tree(1)

    def v(self, positions: float) -> float:
        """Target call on n positions of a chain / on one."""
        return _between(self.target, positions) / self.target[1]

    def more_to_take_in(self, tokens: float) -> float:
        """What a chain's first draft call costs more that takes in n committed tokens than one with a single one /
        target step; 0 where that was not measured."""
        if not self.catch_up:
            return 0.0
        return max(0.0, _between(self.catch_up, tokens) - self.catch_up[1]) / self.target[1]

    def draft_calls(self, drafted: float, feed_last_token: bool = False) -> float:
        """Draft calls of a round that drafts a chain of so many tokens, one more where the last one is fed, too."""
        if self.block:
            return min(1.0, drafted)
        return drafted + (feed_last_token and drafted > 0)

    def c_tree(self, positions: float) -> float:
        """Draft call on n nodes of a tree / target step."""
        assert self.draft_step is not None, "no draft was measured"
        return _between({**self.tree_draft, 1: self.draft_step}, positions) / self.target[1]

    def v_tree(self, positions: float) -> float:
        """Target call on n positions, a tree's nodes and its root / on one."""
        return _between({**self.tree_target, 1: self.target[1]}, positions) / self.target[1]


def _between(seconds: Mapping[int, float], positions: float) -> float:
    """Interpolate linearly; beyond the measured range, return the value at its end."""
    below = max((n for n in seconds if n <= positions), default=min(seconds))
    above = min((n for n in seconds if n >= positions), default=max(seconds))
    if above <= below:
        return seconds[above]
    return seconds[below] + (seconds[above] - seconds[below]) * (positions - below) / (above - below)


def measure(
    models: Mapping[Role, Model],
    ids: Sequence[int],
    gammas: Sequence[int],
    trees: Sequence[TreeRound] = (),
    repeats: int = 12,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Medians over `repeats` of plain steps and of one round for each draft length and tree, interleaved, after `ids`.

    Without a draft among `models`, the rounds have only verifying calls.
    """
    bench = _Bench(models, ids, clock)
    result: dict[Key, list[float]] = defaultdict(list)
    begun = clock()
    for repeat in range(repeats + WARM_UP):
        now = [*bench.plain(), *(bench.steps() if not gammas else ())]
        for gamma in gammas:
            now += bench.chain(gamma)
        now += bench.two_committed() if gammas else ()
        for tree in trees:
            now += bench.tree(tree)
        for key, seconds in now if repeat >= WARM_UP else ():
            result[key].append(seconds)
        if repeat >= WARM_UP and clock() - begun > PATIENCE:
            break

    def sizes(kind: str) -> dict[int, float]:
        return {n: median(seconds) for (what, n), seconds in result.items() if what == kind}

    return Costs(
        sizes("draft").get(1), sizes("target"), sizes("tree_draft"), sizes("tree_target"), sizes("catch_up"),
        isinstance(models.get("draft"), DraftsBlocks),
    )  # fmt: skip


def relative_costs(
    models: Mapping[Role, Model], ids: Sequence[int], most: int, clock: Callable[[], float] = time.perf_counter
) -> RelativeCosts:
    """What a draft step and target calls on 1 to `most` + 1 positions cost after `ids`, in target steps.

    More positions do not cost less: where a disturbed clock says so, sizes have their mean in common. Two positions
    are taken to cost as much as three: rounds of one drafted token are too short to be timed like others.
    """
    lengths = sorted({most, *(2**i for i in range(1, most.bit_length()))})
    measured = measure(models, ids, lengths, repeats=RELATIVE_REPEATS, clock=clock)
    sizes = sorted(measured.target)
    rising = dict(zip(sizes, nondecreasing([measured.target[n] for n in sizes]), strict=True))
    costs = Costs(measured.draft_step, rising)
    return RelativeCosts(costs.c, (1.0, *(costs.v(max(n, sizes[1])) for n in range(2, most + 2))))


def nondecreasing(values: Sequence[float]) -> list[float]:
    """The nondecreasing values with the least squared distance from these (pooling adjacent violators)."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [[*pools[-2], *pools[-1]]]
    return [mean(pool) for pool in pools for _ in pool]


Key = tuple[str, int]  # kind of call, its positions


class _Bench:
    """Times calls on sessions that are rewound to `ids` after each measurement."""

    def __init__(self, models: Mapping[Role, Model], ids: Sequence[int], clock: Callable[[], float]) -> None:
        # A draft that writes text makes forwards of its own model.
        self._models: dict[Role, Model] = {
            role: model.inner if isinstance(model, TextModel) else model for role, model in models.items()
        }
        self._ids, self._clock = ids, clock
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

    def plain(self) -> Iterator[tuple[Key, float]]:
        self._timed("target", [1] * ROW)
        self._rewind()
        yield ("target", 1), self._timed("target", [1] * ROW)
        self._rewind()

    def steps(self) -> Iterator[tuple[Key, float]]:
        if "draft" in self._models:
            yield ("draft", 1), self._drafted_in_steps(ROW)
            self._rewind()

    def chain(self, gamma: int) -> Iterator[tuple[Key, float]]:
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

    def two_committed(self) -> Iterator[tuple[Key, float]]:
        """A round that commits two tokens, which is what a draft model most often takes in."""
        if self._catches_up:
            self._timed("target", [2])
            yield ("catch_up", 2), self._taken_in(2)
            self._rewind()

    def _taken_in(self, tokens: int) -> float:
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

    def tree(self, tree: TreeRound) -> Iterator[tuple[Key, float]]:
        base = len(self._ids) + 1  # after the root
        self._commit(1)
        if tree.depth > 1:
            self._timed("draft", [1])
            levels = [_levels(base, tree.width * i, tree.width) for i in range(1, tree.depth)]
            yield ("tree_draft", tree.width), self._timed("draft", [tree.width] * len(levels), levels)
        whole = _levels(base, tree.nodes, -(-tree.nodes // tree.depth))
        yield ("tree_target", tree.nodes + 1), self._timed("target", [tree.nodes + 1], [whole])
        self._rewind()

    def _timed(
        self, role: Role, sizes: Sequence[int], branches: Sequence[Branches] | None = None, rows: int | None = None
    ) -> float:
        """Mean seconds per call of a series of calls, one for each size; rows of all positions, or so many of each."""
        model, session = self._models[role], self._sessions[role]
        fed = [self._some(role, size) for size in sizes]
        all_branches: Sequence[Branches | None] = branches or [None] * len(sizes)
        model.wait()
        start = self._clock()
        for tokens, each in zip(fed, all_branches, strict=True):
            session.feed(tokens, tokens.shape[0] if rows is None else rows, False, each)
        model.wait()
        return (self._clock() - start) / len(sizes)

    def _drafted(self, gamma: int) -> float:
        """Mean seconds per step of a chain, drafted as in decoding."""
        model, ask, rng = self._models["draft"], Draft(gamma, Warp()), CertainRng()
        if not (isinstance(model, Drafts) and model.drafts(ask, rng)):
            return self._drafted_in_steps(gamma)
        self._commit(1)
        feed, wait = Feed(self._sessions["draft"], self._some("draft", 1), 1), self._models["draft"].wait
        wait()
        start = self._clock()
        model.draft(feed, ask, gamma, rng, 0)
        wait()
        return (self._clock() - start) / gamma

    def _drafted_in_steps(self, steps: int) -> float:
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
