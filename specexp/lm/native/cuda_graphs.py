"""Captured forwards: the kernels for each input shape are recorded once and replayed, without Python and launches.

A decode step of one row is a few hundred small kernels; launching them one by one takes longer than reading the
weights. For each number of tokens and each bucket of attention length there is therefore one recording, over static
inputs: tokens, first slot, and for a tree its mask and positions. Drafting a whole chain, with its forwards, warping
and rng, is one recording too. If fewer tokens are fed than a recording holds, they are padded: the padding is written
after the sequence, where no token attends to it and the next tokens overwrite it. Attention runs over the whole bucket,
under a mask that is computed from the first slot. A draft that catches up on tokens that others proposed feeds them in
the first forward of its chain's recording (`CATCH_UPS`). `tree_graphs.py` grows whole trees.

Prompts are fed in pieces (`PREFILLS`), and longer chains of which all is scored in pieces of the largest of `CHAINS`.
What is left of a prompt where no piece fits the pool is fed directly (`kv_cache.py`), and so are larger trees. Several
rows at once are recorded by `batch_graphs.py`. When a pool grows, its recordings become invalid.

Shapes: N tokens of a recording, n <= N tokens that are fed, C bucket, V vocabulary, D hidden, G drafted tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted, GrownTree, GrowTree
from specexp.decoding.rng import HashRng, Rng
from specexp.decoding.tensor_tree import TreeSizes
from specexp.lm.device_rounds import Then
from specexp.lm.model import Branches, Feed, Session, in_pieces
from specexp.lm.native import feed_through, tree_graphs
from specexp.lm.native.bucketed_forward import BucketForward, tree_inputs, tree_masks
from specexp.lm.native.graph_capture import Capture, Given, Recording, Recordings
from specexp.lm.native.kv_cache import NativeSession, Pool
from specexp.lm.native.recorded_draft import chain_recording, ends_early, numbers_of, recording_of
from specexp.lm.transfer import integers, to_device

CHAINS = (*range(1, 18), 24, 32, 33, 64, 65)  # sizes, in tokens, of chain recordings
CATCH_UPS = (1, 2, 8, 24, 65)  # sizes of the first forward of a drafted chain: few, since each holds a whole chain
TREE_STEP = 16  # trees are padded to a multiple of this number of tokens, which suits matrix units,
TREES = 1024  # up to this many
LEAST_BUCKET = 256  # each next bucket is twice as long, up to the pool's capacity
PREFILLS = (16, 64, 128, 256)  # sizes of a prompt's pieces, which have no logits
SPARE = CHAINS[-1]  # additional slots of a pool, for padding


def bucket_of(slots: int) -> int:
    """The least bucket that holds `slots` slots."""
    bucket = LEAST_BUCKET
    while bucket < slots:
        bucket *= 2
    return bucket


def prefill_sizes(num: int, room: int, most: int) -> list[int]:
    """The sizes of the recordings that take `num` tokens of a prompt, piece by piece, the last one padded: as far as
    there is one of at most `most` tokens that fits `room` slots, so that a pool never grows for padding."""
    result: list[int] = []
    while num > 0 and (fits := [size for size in PREFILLS if size <= min(room, most)]):
        result.append(next((size for size in fits if size >= num), fits[-1]))
        num, room = num - result[-1], room - result[-1]
    return result


class Graphs:
    """The recordings for a pool of one row."""

    def __init__(self, pool: Pool, capture: Capture) -> None:
        self.pool, self.capture = pool, capture
        self._forward = pool.forward
        self.recordings = Recordings(pool.buffers, capture)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def session(self, follows: bool = False) -> Session:
        """Return an empty session. While it is alive, the pool is lent and must not be lent again.

        With `follows` the slots are another session's, which goes on.
        """
        self.pool.lengths[0] = 0
        if not follows:
            self.pool.buffers.values.zero_()  # an earlier session may have left NaN, and padding attends to some of it
        result = self._new_session()
        self._sessions.add(result)
        return result

    def _new_session(self) -> Session:
        return GraphSession(self, NativeSession(self.pool, 0))

    @property
    def lent(self) -> bool:
        return len(self._sessions) > 0

    def feed(
        self, tokens: Tensor, rows: int, hidden: bool, branches: Branches | None, size: int
    ) -> tuple[Tensor, Tensor | None]:
        """`Session.feed` of a chain or a tree by a recording of `size` tokens (`recorded_size`)."""
        num, start = tokens.shape[0], self.pool.lengths[0]
        bucket = self.bucket_for(start + size)
        if branches is None:
            x, logits = self.recordings.answer(
                ("chain", size, bucket), lambda: self._chain(size, bucket), (tokens, start)
            )
        else:
            masks, positions = tree_masks(self._forward, start, num, branches, size, bucket)
            moved = [to_device(each, tokens.device) for each in (positions, *masks)]
            key = ("tree", size, bucket)
            x, logits = self.recordings.answer(key, lambda: self._branches(size, bucket), [tokens, start, *moved])
        self.pool.lengths[0] = start + num
        # The next replay overwrites what this one gave.
        wanted = slice(num - rows, num)
        return logits[wanted].clone(), x[wanted].clone() if hidden else None

    def prefill(self, tokens: Tensor) -> Tensor:
        """Feed tokens[n] of a prompt as far as recordings take them; return the rest."""
        self.bucket_for(self.pool.lengths[0] + tokens.shape[0])
        room, most = self.pool.capacity - self.pool.lengths[0], self._forward.most_recorded_tokens
        for size in prefill_sizes(tokens.shape[0], room, most):
            start, bucket = self.pool.lengths[0], self.bucket_for(self.pool.lengths[0] + size)
            key, piece, tokens = ("prefill", size, bucket), tokens[:size], tokens[size:]
            self.recordings.answer(key, lambda size=size, bucket=bucket: self._prefill(size, bucket), (piece, start))  # type: ignore[misc]
            self.pool.lengths[0] = start + piece.shape[0]
        return tokens

    def recorded_size(self, num: int, branches: Branches | None) -> int:
        """The number of tokens of the recording that takes `num` tokens; 0 if there is none for so many."""
        size = next((each for each in CHAINS if each >= num), 0) if branches is None else self.tree_size(num)
        return size if size <= self._forward.most_recorded_tokens else 0

    def tree_size(self, num: int) -> int:
        """`num` tokens of a tree, padded; 0 if they are too many for a recording."""
        size = -(-num // TREE_STEP) * TREE_STEP if num <= TREES else 0
        return size if size <= self._forward.most_recorded_tokens else 0

    def catches_up(self, num: int) -> int:
        """The size of the first forward of a recorded chain or growth that takes `num` tokens; 0 if none does."""
        size = next((each for each in CATCH_UPS if each >= num), 0)
        return size if size <= self._forward.most_recorded_tokens else 0

    def draft(
        self, tokens: Tensor | Sequence[int], ask: Draft, length: int, rng: Rng, position: int,
        stopping: Stopping | None, more: Sequence[Tensor] = (),
    ) -> Drafted:  # fmt: skip
        """Draft a chain of `length` tokens after `tokens`[1 to CATCH_UPS[-1]] by one replay, which the next one of this
        model overwrites.

        The recording always drafts gamma tokens; if `length` is smaller, only the first ones are used. With `stopping`
        the replay decides how many it drafts, and the caller reads that (`Drafted.num_drafted`). `more` are inputs that
        a recording of another kind has first.
        """
        num, start, gamma = len(tokens), self.pool.lengths[0], ask.gamma
        size = next(each for each in CATCH_UPS if each >= num)
        bucket = self.bucket_for(start + size + gamma)
        seeds = rng.key if isinstance(rng, HashRng) else (0, 0)
        key = ("draft", size, bucket, *recording_of(ask))
        given: list[Given] = [*more, tokens, num, start, position, *seeds]
        if ends_early(ask):
            given.append(numbers_of(ask, stopping, length))
        parts = self.recordings.answer(key, lambda: self._drafting(size, bucket, ask), given)
        drafted, q, x, peaks, *ending = (part[0] for part in parts)
        self.pool.lengths[0] = start + num + length - 1 + ask.feed_last_token
        hidden = x[: length + ask.feed_last_token] if ask.hidden or ask.feed_last_token else None
        q_kept = None if ask.warp.greedy and not ask.keep_q else q[:length]
        chances, number = (ending[0][:length], ending[1][None]) if ending else (None, None)
        return Drafted(drafted[:length], q_kept, hidden, peaks[:length], probability=chances, num_drafted=number)

    def bucket_for(self, slots: int) -> int:
        """Grow the pool to at least `slots` slots, always to a bucket size, which suits kernels; returns the bucket."""
        bucket = bucket_of(slots)
        if slots > self.pool.capacity:
            self.pool.buffers.ensure_capacity(bucket)
        return min(bucket, self.pool.capacity)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._forward.device)

    def _chain(self, size: int, bucket: int) -> Recording:
        forward = BucketForward(self.pool, bucket)

        def run(tokens: Tensor, start: Tensor) -> tuple[Tensor, ...]:
            x = forward.chain(tokens, start)
            return x, forward.logits(x)

        return Recording(run, (self.zeros(size), self.zeros(1)))

    def _prefill(self, size: int, bucket: int) -> Recording:
        forward = BucketForward(self.pool, bucket)
        return Recording(lambda tokens, start: (forward.chain(tokens, start)[-1:],), (self.zeros(size), self.zeros(1)))

    def _branches(self, size: int, bucket: int) -> Recording:
        forward = BucketForward(self.pool, bucket)

        def run(tokens: Tensor, start: Tensor, positions: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
            x = forward.tree(tokens, start, positions, masks)
            return x, forward.logits(x)

        masks = tree_inputs(self._forward, size, bucket)
        return Recording(run, (self.zeros(size), self.zeros(1), self.zeros(size), *masks))

    def _drafting(self, size: int, bucket: int, ask: Draft) -> Recording:
        return self._chain_of(BucketForward(self.pool, bucket), size, ask)

    def _chain_of(self, forward: BucketForward, size: int, ask: Draft) -> Recording:
        return chain_recording(forward, ask, 1, size, self.zeros, self.capture.when)


@dataclass(slots=True, eq=False, weakref_slot=True)
class GraphSession:
    """A pool's row as a `Session`: replays recordings where possible, and otherwise feeds through `NativeSession`."""

    graphs: Graphs
    inner: NativeSession

    @property
    def length(self) -> int:
        return self.inner.length

    @torch.inference_mode()
    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        num, most = tokens.shape[0], CHAINS[-1]
        if branches is None and not rows:
            tokens = self.graphs.prefill(tokens)
        elif branches is None and num > most and self.graphs.recorded_size(most, None):
            parts = torch.split(tokens[num - rows :], most)
            return in_pieces(self.feed, [tokens[: num - rows], *parts] if rows < num else parts, rows, hidden)
        size = self.graphs.recorded_size(tokens.shape[0], branches) if rows else 0
        if not size:
            self.graphs.bucket_for(self.length + tokens.shape[0])
            return self.inner.feed(tokens, rows, hidden, branches)
        return self.graphs.feed(tokens, rows, hidden, branches, size)

    @torch.inference_mode()
    def draft(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None = None
    ) -> Drafted:
        """`Drafts.draft`: one forward for the feed's tokens, which a recording includes unless they are many."""
        num, tokens = feed.num_tokens, feed.tokens if feed.ids is None else feed.ids
        if num > CATCH_UPS[1] and not self.graphs.catches_up(num):
            self.feed(feed.tokens[:-1], rows=0)
            tokens = tokens[-1:]
        return self.graphs.draft(tokens, ask, length, rng, position, stopping)

    def takes_tree(self, ask: GrowTree, num: int) -> bool:
        """True if recordings grow this tree and score it after `num` more tokens."""
        sizes = TreeSizes.of(ask, ask.width)
        return all(self.graphs.tree_size(each) for each in (num + sizes.places, max(1, sizes.slots)))

    @torch.inference_mode()
    def grow(self, ids: Sequence[int], ask: GrowTree, depth: int) -> GrownTree:
        """`GrowsTrees.grow`: as for a chain, many tokens are fed before."""
        if not self.graphs.catches_up(len(ids)):
            self.feed(integers(ids[:-1], self.inner.pool.forward.device), rows=0)
            ids = ids[-1:]
        return tree_graphs.grow(self.graphs, ids, ask, depth, self.graphs.catches_up(len(ids)))

    def takes(self, num: int) -> bool:
        """True if a recording takes `num` tokens."""
        return self.graphs.recorded_size(num, None) > 0

    @torch.inference_mode()
    def feed_through(
        self, ids: Sequence[int], tokens: Tensor | None, hidden: bool, then: Then, given: Sequence[Tensor | int]
    ) -> tuple[Tensor, Then]:
        """`FeedsThrough.feed_through`."""
        return feed_through.chain(self.graphs, ids, tokens, hidden, then, given)

    @torch.inference_mode()
    def feed_tree_through(
        self, ids: Sequence[int], tree: GrownTree, hidden: bool, then: Then, given: Sequence[Tensor | int]
    ) -> tuple[Tensor, Then]:
        """`FeedsThrough.feed_tree_through`."""
        size = self.graphs.tree_size(len(ids) + tree.depths.shape[0])
        return feed_through.tree(self.graphs, ids, tree, hidden, size, then, given)

    @torch.inference_mode()
    def feed_tree(self, tokens: Tensor, tree: GrownTree, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """`GrowsTrees.feed_tree`."""
        size = self.graphs.tree_size(tokens.shape[0] + tree.depths.shape[0])
        return tree_graphs.score(self.graphs, tokens, tree, hidden, size)

    @torch.inference_mode()
    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        if slots:
            tree_graphs.keep(self.graphs, length, slots)
        self.inner.truncate(length + len(slots))

    def slots(self) -> object:
        return self.inner.slots()

    def states(self, start: int, stop: int) -> Tensor:
        """The kept states [N, T D] of the slots start .. stop - 1."""
        return self.inner.states(start, stop)

    def follow(self, leader: Session) -> None:
        """Hold what `leader` holds, a session in the same buffers."""
        self.inner.follow(leader)
