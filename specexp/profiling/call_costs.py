"""Measures the seconds of a draft step and of a target call on n positions, in the order in which decoding makes them.

Only forwards are timed, without sampling or accepting, so that a method's other costs show as unrealised speed. Plain
steps are timed in a row, as in plain decoding; draft calls and verifying calls in rounds, since a model that runs after
another one finds fewer of its weights in the CPU's caches. A draft that makes its chain in one call is timed that way,
greedily, with its argmax. For the same reason, an untimed row or round of the same kind precedes each timed one. The
first draft call of a round takes in what was committed since the last one: a few tokens are timed as that, too.
Chains and trees are measured separately, since a tree's call takes a mask. `call_bench.py` makes the calls, and
`timers.py` times them: on CUDA without waiting in between, as decoding makes them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.protocol import Role
from specexp.lm.model import DraftsBlocks, Model, StateReader
from specexp.profiling.call_bench import ROW as ROW
from specexp.profiling.call_bench import CallBench, Key
from specexp.profiling.call_bench import TreeRound as TreeRound

WARM_UP = 1
RELATIVE_REPEATS = 24  # for drafts that adapt
PATIENCE = 60.0  # seconds after which no further repeat starts: calls that take so long vary less


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
    by_events: bool = False  # timed on the device, back to back: what decoding pays for a call on CUDA

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

    def tree_drafts(self, tree: TreeRound) -> float:
        """Seconds of the draft's calls that grow a measured tree: at the root, and on each further level."""
        assert self.draft_step is not None, "no draft was measured"
        return self.draft_step + ((tree.depth - 1) * self.tree_draft[tree.width] if tree.depth > 1 else 0.0)

    def tree_round(self, tree: TreeRound) -> float:
        """Seconds of the calls of a measured tree's round: the draft's, and the target's on its nodes and the root."""
        return self.tree_drafts(tree) + self.tree_target[tree.nodes + 1]


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
    bench = CallBench(models, ids, clock)
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
            result[key].append(seconds())
        if repeat >= WARM_UP and clock() - begun > PATIENCE:
            break

    def sizes(kind: str) -> dict[int, float]:
        return {n: median(seconds) for (what, n), seconds in result.items() if what == kind}

    return Costs(
        sizes("draft").get(1), sizes("target"), sizes("tree_draft"), sizes("tree_target"), sizes("catch_up"),
        isinstance(models.get("draft"), DraftsBlocks), bench.by_events,
    )  # fmt: skip


def relative_costs(
    models: Mapping[Role, Model], ids: Sequence[int], most: int, clock: Callable[[], float] = time.perf_counter
) -> RelativeCosts:
    """What a draft step and target calls on 1 to `most` + 1 positions cost after `ids`, in target steps.

    More positions do not cost less: where a disturbed clock says so, sizes have their mean in common. Two positions
    are taken to cost as much as three: rounds of one drafted token are too short to be timed like others. A draft that
    reads the target's states begins a chain with all that was committed, half of `most` in the middle; another one has
    its own states of all but one or two.
    """
    lengths = sorted({most, *(2**i for i in range(1, most.bit_length()))})
    measured = measure(models, ids, lengths, repeats=RELATIVE_REPEATS, clock=clock)
    sizes = sorted(measured.target)
    rising = dict(zip(sizes, nondecreasing([measured.target[n] for n in sizes]), strict=True))
    costs = Costs(measured.draft_step, rising, catch_up=measured.catch_up)
    draft = models.get("draft")
    begin = costs.more_to_take_in(most // 2 + 1) if draft and isinstance(draft.session(), StateReader) else 0.0
    return RelativeCosts(costs.c, (1.0, *(costs.v(max(n, sizes[1])) for n in range(2, most + 2))), begin)


def nondecreasing(values: Sequence[float]) -> list[float]:
    """The nondecreasing values with the least squared distance from these (pooling adjacent violators)."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [[*pools[-2], *pools[-1]]]
    return [mean(pool) for pool in pools for _ in pool]
