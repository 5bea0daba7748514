"""Token trees by recordings: a whole growth is one, and the target's forward over the grown tree is another.

The draft's levels follow each other in its slots as on the host: padding of a level is overwritten by the next one. A
level that expands no node is skipped (`Capture.when`). The tree's masks and positions never leave the device.

Shapes: N fed tokens, padding included, E nodes of a level, S slots of nodes, K places for nodes, C bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specexp.decoding.protocol import GrownTree, GrowTree
from specexp.decoding.tensor_tree import TreeSizes, grow_tree
from specexp.lm.kernels.ordered_attention import slots_by_position
from specexp.lm.native.bucketed_forward import BucketForward, kinds
from specexp.lm.native.graph_capture import Function, Recording
from specexp.lm.native.kv_cache import Pool

if TYPE_CHECKING:
    from specexp.lm.native.cuda_graphs import Graphs

When = Callable[[Tensor, Callable[[], None]], None]  # `Capture.when`


def grow(graphs: Graphs, ids: Sequence[int], ask: GrowTree, depth: int, size: int) -> GrownTree:
    """Grow a tree after ids[n], n <= `size`, of at most `depth` levels, by one replay, which the next one of the same
    shape overwrites."""
    num, start = len(ids), graphs.pool.lengths[0]
    slots = TreeSizes.of(ask, ask.width).slots
    bucket = graphs.bucket_for(start + size + slots)

    def build() -> Recording:
        inputs = [graphs.zeros(size), *(graphs.zeros(1) for _ in range(3))]
        return Recording(_growth(_TreeForward(graphs.pool, bucket), ask, graphs.capture.when), inputs)

    parts = graphs.recordings.answer(("grow", size, bucket, ask), build, (ids, num, start, depth))
    graphs.pool.lengths[0] = start + num + slots
    table, depths, sees, counts, scores, peak = parts
    return GrownTree(table, depths, sees, counts, scores, peak, depth)


def score(
    graphs: Graphs, tokens: Tensor, tree: GrownTree, hidden: bool, size: int
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`Session.feed` of tokens[n] and a tree's places, which `size` tokens hold: the rows of the last one and these."""
    num, start, places = tokens.shape[0], graphs.pool.lengths[0], tree.depths.shape[0]
    bucket = graphs.bucket_for(start + size)

    def build() -> Recording:
        return Recording(verification(graphs, bucket, size), inputs(graphs, num, places))

    given = (tokens, start, *of_tree(tree))
    x, logits = graphs.recordings.answer(("grown tree", num, places, size, bucket), build, given)
    graphs.pool.lengths[0] = start + num + places
    return logits.clone(), x.clone() if hidden else None


def keep(graphs: Graphs, length: int, slots: Sequence[int]) -> None:
    """Move the keys and values of `slots`, in this order, to the slots from `length` on, by one replay."""
    size = 1 << (len(slots) - 1).bit_length()
    graphs.bucket_for(length + size)
    buffers = graphs.pool.buffers  # not the recordings themselves, which keep this function

    def run(to: Tensor, moved: Tensor) -> tuple[Tensor, ...]:
        places = to + torch.arange(size, device=to.device)
        for each in (buffers.values, buffers.states):
            if each is not None:
                here = each[:, 0]
                here.index_copy_(1, places, here.index_select(1, moved))
        return ()

    def build() -> Recording:
        nowhere = torch.arange(size, device=graphs.pool.forward.device)
        return Recording(run, (graphs.zeros(1), nowhere), moves=True)

    # What is moved behind them is padding, which stays where it is.
    padded = [*slots, *range(length + len(slots), length + size)]
    graphs.recordings.answer(("keep", size), build, (length, padded))


def inputs(graphs: Graphs, num: int, places: int) -> list[Tensor]:
    """Zeros in the form of `num` tokens, their first slot, and `of_tree` of a tree of K = `places`."""
    return [graphs.zeros(num), graphs.zeros(1), graphs.zeros(places), graphs.zeros(places),
            graphs.zeros(places, places, dtype=torch.bool)]  # fmt: skip


def of_tree(tree: GrownTree) -> tuple[Tensor, Tensor, Tensor]:
    """What the target's forward reads of a tree: tokens[K], depths[K] and sees[K, K]."""
    return tree.table[0, 1:], tree.depths, tree.sees


class _TreeForward:
    """A forward over a bucket, and what its masks are made of."""

    def __init__(self, pool: Pool, bucket: int) -> None:
        self.own = BucketForward(pool, bucket)
        self.columns = torch.arange(bucket, device=pool.forward.device)
        self._forward, self._windows = pool.forward, kinds(pool.forward)

    def run(self, tokens: Tensor, start: Tensor, positions: Tensor, seen: Tensor, at: Tensor) -> Tensor:
        """Final hidden states of tokens[N] from slot start[1] on, which attend to seen[N, C]; the slots are at[C]."""
        if self._forward.invariant:
            return self.own.tree(tokens, start, positions, [slots_by_position(seen, at)])
        masks = [seen & (at > positions[:, None] - window) if window else seen for window in self._windows]
        return self.own.tree(tokens, start, positions, masks)


class _Levels:
    """The draft's forwards of one growth (`tensor_tree.Expand`), below the root in slot base[1] - 1."""

    def __init__(self, forward: _TreeForward, base: Tensor, num_slots: int) -> None:
        self._forward, self._base, columns = forward, base, forward.columns
        # paths[s + 1] are the slots [C] that the node in slot s attends to; paths[0] is the root's.
        self._paths = (columns < base)[None].repeat(num_slots + 1, 1)
        self._at = columns.clone()

    def __call__(self, tokens: Tensor, parents: Tensor, depths: Tensor, first: Tensor) -> Tensor:
        slots = first + self._forward.columns[: tokens.shape[0]]
        positions = self._base + depths - 1
        seen = self._paths.index_select(0, parents + 1) | (self._forward.columns == (self._base + slots)[:, None])
        self._paths.index_copy_(0, slots + 1, seen)
        self._at.index_copy_(0, self._base + slots, positions)
        return self._forward.own.logits(self._forward.run(tokens, self._base + first, positions, seen, self._at))


def _growth(forward: _TreeForward, ask: GrowTree, when: When) -> Function:
    """tokens[N], n[1], start[1] and depth[1] to the arrays of a `GrownTree`."""

    def run(tokens: Tensor, num: Tensor, start: Tensor, depth: Tensor) -> tuple[Tensor, ...]:
        x = forward.own.chain(tokens, start)
        root = forward.own.logits(x if x.shape[0] == 1 else x.index_select(0, num - 1))
        levels = _Levels(forward, start + num, TreeSizes.of(ask, root.shape[1]).slots)
        tree = grow_tree(ask, depth, root, levels, when)
        return tree.table, tree.depths, tree.sees, tree.counts, tree.scores, tree.peak

    return run


def verification(graphs: Graphs, bucket: int, size: int) -> Function:
    """`inputs` to the states and logits of K + 1 rows, by a forward of `size` tokens, padding included."""
    forward = _TreeForward(graphs.pool, bucket)

    def run(tokens: Tensor, start: Tensor, nodes: Tensor, depths: Tensor, sees: Tensor) -> tuple[Tensor, ...]:
        columns, num, places = forward.columns, tokens.shape[0], nodes.shape[0]
        base, padding = start + num, size - num - places
        below = base + depths - 1
        at = columns.index_copy(0, base + columns[:places], below)
        inner = sees.index_select(1, (columns - base).clamp(0, places - 1))
        inner = inner & (columns >= base) & (columns < base + places)
        chain = start + columns[:num]
        # Padding attends to the first slot: an empty row would give NaN.
        seen = torch.cat([columns <= chain[:, None], (columns < base) | inner, (columns < 1)[None].expand(padding, -1)])
        fed = torch.cat([tokens, nodes.clamp(min=0), nodes.new_zeros(padding)])
        x = forward.run(fed, start, torch.cat([chain, below, chain.new_zeros(padding)]), seen, at)
        x = x[num - 1 : num + places]
        return x, forward.own.logits(x)

    return run
