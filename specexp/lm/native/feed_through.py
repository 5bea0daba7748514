"""Recordings that go on after the forward with a function of what it scored: how a round is decided.

Between the forward and what the host reads of it nothing is launched then: the function's arrays are inputs of the
recording, and what it makes is an output, which the next replay overwrites. For one row, nothing is allocated, either.

Shapes: n tokens that the host knows, N more of the device, K places of a tree, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specexp.decoding.protocol import GrownTree
from specexp.lm.device_rounds import Then
from specexp.lm.model import Feed
from specexp.lm.native import tree_graphs
from specexp.lm.native.bucketed_forward import BucketForward
from specexp.lm.native.graph_capture import Behind, Function, Recording
from specexp.lm.native.kv_cache import Pool
from specexp.lm.native.rows_forward import UNUSED, RowLayout
from specexp.lm.transfer import integers

if TYPE_CHECKING:
    from specexp.lm.native.batch_graphs import BatchGraphs
    from specexp.lm.native.cuda_graphs import Graphs


def chain(
    graphs: Graphs, ids: Sequence[int], tokens: Tensor | None, hidden: bool, then: Then, given: Sequence[Tensor | int]
) -> tuple[Tensor, Then]:
    """`FeedsThrough.feed_through` of ids[n] and tokens[N]."""
    more = 0 if tokens is None else tokens.shape[0]
    num, start = len(ids) + more, graphs.pool.lengths[0]
    size = graphs.recorded_size(num, None)
    bucket = graphs.bucket_for(start + size)

    def build() -> Recording:
        forward = BucketForward(graphs.pool, bucket)

        def run(fed: Tensor, start: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            x = forward.chain(fed, start)[num - more - 1 : num]
            return (then(fed[num - more : num], forward.logits(x), x if hidden else None, *others),)

        return _recording(graphs, run, (graphs.zeros(size), graphs.zeros(1)), then, given)

    key = ("chain through", num, more, bucket, hidden, then, _kinds(given))
    inputs = (ids if tokens is None else Behind(ids, tokens), start, *given)
    (result,), recording = graphs.recordings.replayed(key, build, inputs)
    graphs.pool.lengths[0] = start + num
    assert recording.then is not None
    return result, recording.then


def tree(
    graphs: Graphs, ids: Sequence[int], tree: GrownTree, hidden: bool, size: int, then: Then,
    given: Sequence[Tensor | int],
) -> tuple[Tensor, Then]:  # fmt: skip
    """`FeedsThrough.feed_tree_through` of ids[n] and a tree's places, which `size` tokens hold."""
    num, start, places = len(ids), graphs.pool.lengths[0], tree.depths.shape[0]
    bucket = graphs.bucket_for(start + size)

    def build() -> Recording:
        inputs = tree_graphs.inputs(graphs, num, places)
        forward = tree_graphs.verification(graphs, bucket, size)

        def run(*every: Tensor) -> tuple[Tensor, ...]:
            own, others = every[: len(inputs)], every[len(inputs) :]
            x, logits = forward(*own)
            return (then(own[2], logits, x if hidden else None, *others),)

        return _recording(graphs, run, inputs, then, given)

    key = ("tree through", num, places, size, bucket, hidden, then, _kinds(given))
    own = (ids, start, *tree_graphs.of_tree(tree))
    (result,), recording = graphs.recordings.replayed(key, build, (*own, *given))
    graphs.pool.lengths[0] = start + num + places
    assert recording.then is not None
    return result, recording.then


def together(
    graphs: BatchGraphs, pool: Pool, feeds: Sequence[tuple[int, Feed]], then: Then,
    given: Sequence[Sequence[Tensor | int]],
) -> tuple[Tensor, Then]:  # fmt: skip
    """`FeedsThroughTogether.feed_through` of rows and their feeds."""
    num, more = max(feed.num_tokens for _, feed in feeds), max(feed.rows for _, feed in feeds) - 1
    hidden, size = feeds[0][1].hidden, next(each for each in graphs.sizes if each >= num)
    rows, by_input = [row for row, _ in feeds], list(zip(*given, strict=True))
    layout = RowLayout.of(rows, graphs.buffers.rows)
    starts = [pool.lengths[row] for row in rows]
    bucket, count = graphs.bucket(max(starts) + size), layout.count
    numbers = [(list(values), 0) for values in by_input if isinstance(values[0], int)]
    arrays = [torch.stack(values) for values in by_input if not isinstance(values[0], int)]
    own, _ = graphs.inputs(layout, feeds, size, [(starts, UNUSED), *numbers])
    in_order = layout.places == list(range(len(rows)))
    places = integers(layout.places, pool.forward.device)
    if not in_order:
        arrays = [each.new_zeros(count, *each.shape[1:]).index_copy_(0, places, each) for each in arrays]

    def build() -> Recording:
        forward = graphs.forward_of(layout, bucket)

        def run(_: Tensor, tokens: Tensor, start: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            x = forward.chain(tokens, start)
            logits, made = forward.logits(x), []
            for row in range(count):
                stop = row * size + num
                scored = slice(stop - more - 1, stop)
                its = [each[row : row + 1] if each.ndim == 1 else each[row] for each in others]
                made.append(then(tokens[stop - more : stop], logits[scored], x[scored] if hidden else None, *its))
            return (torch.stack(made),)

        inputs = [forward.rows, graphs.zeros(count * size), *(graphs.zeros(count) for _ in own[2:])]
        inputs += [graphs.recordings.shared(place, each, count) for place, each in enumerate(arrays)]
        return Recording(run, inputs, then=then)

    key = ("chain through", count, layout.in_place, num, more, bucket, hidden, then, _kinds(given[0]))
    (made,), recording = graphs.recordings.replayed(key, build, (*own, *arrays))
    for row, feed in feeds:
        pool.lengths[row] += feed.num_tokens
    assert recording.then is not None
    return (made[: len(rows)] if in_order else made.index_select(0, places)).view(-1), recording.then


def _recording(
    graphs: Graphs, run: Function, own: Sequence[Tensor], then: Then, given: Sequence[Tensor | int]
) -> Recording:
    others = [
        graphs.zeros(1) if isinstance(each, int) else graphs.recordings.shared(place, each)
        for place, each in enumerate(given)
    ]
    return Recording(run, [*own, *others], then=then)


def _kinds(given: Sequence[Tensor | int]) -> tuple[object, ...]:
    """What recordings differ in by these inputs."""
    return tuple(int if isinstance(each, int) else (each.shape, each.dtype) for each in given)
