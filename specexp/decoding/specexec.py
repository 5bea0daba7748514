"""SpecExec: the draft grows a tree of likely continuations, the target scores all of it in one call, and the target's
own draws walk it (Svirschevski et al. 2406.02532).

The draws are those of plain decoding: same warp, same rng, same positions. The output for a seed is therefore that of
plain decoding with that seed, token for token, at any temperature; the tree decides only how many draws a call yields.
There is no acceptance test and no residual here, and q is never sampled from.

A rule may send the walk to a child that was not drawn (AutoJudge on a tree): the output is then lossy.

Shapes: N nodes, V vocabulary, D depth of the tree.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from specexp.decoding.protocol import (
    TREE_COUNTS,
    Array,
    Ask,
    GrownTree,
    GrowTree,
    Needs,
    Role,
    Round,
    Score,
    Scored,
    Steps,
    Trial,
)
from specexp.decoding.rng import TARGET, Rng
from specexp.decoding.rules import Warp
from specexp.decoding.tree import Node, Tree
from specexp.errors import ConfigError


class TreeRule(Protocol):
    """Decides to which nodes the walk may go although the target drew another token. `recordable` as of a `Rule`."""

    @property
    def needs(self) -> Needs:
        """The target's hidden rows, or nothing."""
        ...

    def accept_nodes(self, tokens: Array, parents: Array, scored: Scored) -> Array | None:
        """accepted_anyway[N + 1] of bools for the nodes' tokens[N + 1] and their parents' rows[N + 1]; None for none.

        Row 0 is the root's, whose token and parent are -1; what is said of it does not matter.
        """
        ...


@dataclass(frozen=True, slots=True)
class TreeDecision:
    """Walks a tree, as `SpecExec` says (`Decision`)."""

    warp: Warp
    rule: TreeRule | None

    @property
    def recordable(self) -> bool:
        return type(self.warp) is Warp and (self.rule is None or getattr(self.rule, "recordable", False))

    @property
    def reads(self) -> tuple[str, ...]:
        return ("table", "counts")

    @property
    def takes_padding(self) -> bool:
        return False  # a tree has padding of its own

    def __call__(self, scored: Scored, proposed: Tree | GrownTree, rng: Rng, position: Array | int) -> Round:
        table, rule = scored.row_metadata, self.rule
        assert table is not None
        anyway = None if rule is None or table.shape[1] == 1 else rule.accept_nodes(table[0], table[1], scored)
        path = walk(scored.logits, table, proposed.depth, self.warp, rng, position, anyway)
        return Round(
            path.tokens,
            path.num_accepted + 1,
            {"target": path.slots, "draft": path.draft_slots},
            {
                **_counts(proposed),
                "num_accepted": path.num_accepted,
                "path": path.slots,
                "ranks": path.ranks,
                **({} if rule is None else {"judged": path.judged}),
            },
        )


@dataclass(frozen=True, slots=True)
class SpecExec:
    """Grow by parallel Dijkstra, verify, walk, commit.

    Each draft forward expands the best `parallel_branches` nodes, and each of these proposes its best `branch_width`
    children (None: `parallel_branches`). The tree keeps the best `tree_budget` nodes, and takes `max_depth` draft
    forwards at most, the root's included. A child stays only if q(child) >= `branch_prune_threshold` times its best
    sibling's (0 = off, 1 = the draft's favourite alone), and only if its path's log-probability is >= `min_log_prob`
    (None = off). With `rule`, a draw that is no child of its node is replaced by the draft's favourite among the
    children that the rule accepts. Raises ConfigError with every fault.
    """

    tree_budget: int
    max_depth: int
    warp: Warp
    parallel_branches: int = 4
    branch_width: int | None = None
    branch_prune_threshold: float = 0.0
    min_log_prob: float | None = None
    rule: TreeRule | None = None

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("tree_budget", "max_depth", "parallel_branches")}
        faults = [
            f"{name} is {value}; it must be >= 1."
            for name, value in {**counts, "branch_width": self.width}.items()
            if value < 1
        ]
        if not 0 <= self.branch_prune_threshold <= 1:
            faults.append(f"branch_prune_threshold is {self.branch_prune_threshold}; it must be in [0, 1] (0 = off).")
        if self.min_log_prob is not None and not self.min_log_prob <= 0:
            faults.append(f"min_log_prob is {self.min_log_prob}; it must be <= 0.")
        if faults:
            raise ConfigError(faults)

    @property
    def width(self) -> int:
        """Children that a node proposes."""
        return self.parallel_branches if self.branch_width is None else self.branch_width

    @property
    def tree(self) -> GrowTree:
        """The ask for a tree of this shape."""
        least = float("-inf") if self.min_log_prob is None else self.min_log_prob
        return GrowTree(
            self.tree_budget, self.max_depth, self.parallel_branches, self.width, self.branch_prune_threshold, least
        )

    @property
    def models(self) -> tuple[Role, ...]:
        return ("target", "draft")

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        limit, decision = remaining_tokens, TreeDecision(self.warp, self.rule)
        hidden = self.rule is not None and self.rule.needs.target
        while remaining_tokens:
            tree = yield from grow(self.tree)
            trial = Trial(decision, tree, rng, limit - remaining_tokens)
            scored: Scored = yield _verification(tree, hidden, trial)
            remaining_tokens = yield trial(scored)


def grow(ask: GrowTree) -> Generator[Ask, Any, Tree | GrownTree]:
    """The tree that is asked for: the one that the draft grew on its device, or one grown here, level by level."""
    answer: GrownTree | int = yield ask
    if isinstance(answer, GrownTree):
        return answer
    tree = Tree(ask.budget, ask.threshold, ask.min_log_prob)
    # Each forward reaches at most one level deeper, so that the number of forwards bounds the depth too.
    while tree.num_draft_calls < answer and (places := tree.frontier(ask.branches)):
        tokens, parents = tree.to_score(places)
        scored: Scored = yield Score("draft", tokens or None, parents or None, top=ask.width)
        tree.widen(places, scored.first_slot, scored.logprob, scored.ids)
    return tree


def _verification(tree: Tree | GrownTree, hidden: bool, trial: Trial) -> Score:
    """What the target is asked of a tree."""
    if isinstance(tree, GrownTree):
        return Score("target", hidden=hidden, tree=tree, trial=trial)
    grown = tree.grown()
    tokens, parents = [node.token for node, _ in grown], [parent for _, parent in grown]
    return Score("target", tokens or None, parents or None, hidden=hidden, row_metadata=by_row(grown), trial=trial)


def _counts(tree: Tree | GrownTree) -> Mapping[str, Array | int]:
    if isinstance(tree, GrownTree):
        return {name: tree.counts[i] for i, name in enumerate(TREE_COUNTS)}
    return tree.counts()


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The accepted path: arrays[D + 1], of which the first `num_accepted` (0-d) values are valid and the others -1.

    `tokens` hold one more valid value: the draw that left the tree. `judged` is 1 for a node that was not drawn.
    """

    tokens: Array
    num_accepted: Array
    slots: Array  # of the target
    draft_slots: Array  # of the draft, as far as it scored the path
    ranks: Array  # of each accepted node among its siblings, by the draft
    judged: Array


def by_row(grown: Sequence[tuple[Node, int]]) -> list[list[int]]:
    """Token, parent's row, slot in the draft and rank of each node, by its row in the logits; row 0 is the root's."""
    columns = (
        [node.token for node, _ in grown],
        [parent + 1 for _, parent in grown],
        [node.slot for node, _ in grown],
        [node.rank for node, _ in grown],
    )
    return [[-1, *values] for values in columns]


def walk(
    logits: Array, table: Array, depth: int, warp: Warp, rng: Rng, position: Array | int, anyway: Array | None = None
) -> Path:
    """Draw at the root, go to the child that was drawn if there is one, draw there, and so on.

    Where there is none, the walk goes to the child of lowest rank of those in `anyway`[N + 1], in place of the draw.

    logits[N + 1, V], row 0 the root's; `table`[4, N + 1] is `by_row` of a tree of depth D = `depth`; `position` is that
    of the first draw. Never branches on an array's value: it takes D + 1 steps and warps one row in each. Once it has
    left the tree, a step draws from a one-hot row, so that its outcome is fixed.
    """
    xp = array_namespace(logits)
    where = device(logits)
    tokens, parents, slots, ranks = table[0], table[1], table[2], table[3]
    certain = xp.astype(xp.arange(logits.shape[-1], device=where) == 0, logits.dtype)
    row, inside = parents[0] + 1, parents[0] < 0  # the root's; True
    last = 0 if anyway is None else xp.max(ranks) + 1  # behind every child
    emitted: list[Array] = []
    rows: list[Array] = []
    judged: list[Array] = []
    for step in range(depth + 1):
        p = warp(xp.take(logits, row[None], axis=0))[0]
        token = rng.pick(xp.where(inside, p, certain), position + step, TARGET)
        children = (parents == row) & inside
        child = children & (tokens == token)
        if anyway is not None:
            missed = ~xp.any(child)
            others = children & anyway & missed
            best = xp.min(xp.where(others, ranks, last))
            child = child | (others & (ranks == best))
            judged.append(missed & xp.any(child))
        inside = xp.any(child)
        row = xp.where(inside, xp.argmax(xp.astype(child, xp.int64)), row)
        rows.append(xp.where(inside, row, xp.zeros_like(row)))
        emitted.append(token if anyway is None else xp.where(judged[-1], xp.take(tokens, row[None], axis=0)[0], token))
    visited = xp.stack(rows)  # 0 after the tree was left: row 0 is the root, which is never a child
    instead = xp.zeros_like(visited) if anyway is None else xp.astype(xp.stack(judged), visited.dtype)
    return Path(
        tokens=xp.stack(emitted),
        num_accepted=xp.sum(xp.astype(visited > 0, xp.int64)),
        slots=visited - 1,
        draft_slots=xp.take(slots, visited, axis=0),
        ranks=xp.take(ranks, visited, axis=0),
        judged=xp.where(visited > 0, instead, xp.full_like(visited, -1)),
    )
