"""Recordings for several rows that are fed together, each at its own length: chains, and whole drafted chains.

There is one for each number of rows (`RowLayout`, the rest is masked), of tokens that a row is fed, and bucket of
attention length, which is the longest row's. Rows that are done leave gaps: while those in use are the first ones of
the buffers, they are read in place, else they are gathered, which is a second recording. Which rows they are, where
they start and what their draws depend on are inputs, so that rows join and leave without another one.

Feeds of many tokens take several replays. Trees, and what a mixture of experts cannot record, are fed as they come.

Shapes: R rows of a recording, N tokens of each, G drafted tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import HashRng, Rng
from specexp.lm.device_rounds import Then
from specexp.lm.model import ChainStart, Feed, Session
from specexp.lm.native import feed_through
from specexp.lm.native.cuda_graphs import CATCH_UPS, CHAINS, bucket_of, prefill_sizes
from specexp.lm.native.graph_capture import Capture, Recording, Recordings
from specexp.lm.native.kv_cache import Buffers, NativeSession, Pool
from specexp.lm.native.native_forward import NativeForward
from specexp.lm.native.recorded_draft import chain_recording, ends_early, numbers_of, recording_of
from specexp.lm.native.rows_forward import UNUSED, RowLayout, RowsForward, row_count
from specexp.lm.transfer import integers, to_device

MOST_TOKENS = 512  # of all rows of a recording: it keeps the logits of each

Answers = list[tuple[Tensor, Tensor | None]]


class BatchGraphs:
    """The recordings for the rows of some buffers, in which `forward` runs."""

    sizes = CHAINS

    def __init__(self, forward: NativeForward, buffers: Buffers, capture: Capture, num_valid_ids: int | None) -> None:
        self.buffers, self.recordings = buffers, Recordings(buffers, capture)
        self._forward, self._capture, self._num_valid_ids = forward, capture, num_valid_ids
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()

    def sessions(self, follows: bool = False) -> list[NativeSession]:
        """Return an empty session for each row. While one of them is alive, the buffers must not be lent again.

        With `follows` the slots are those of other sessions, which go on.
        """
        if not follows:
            self.buffers.values.zero_()  # an earlier session may have left NaN, and padding attends to some of it
        pool = Pool(self._forward, self.buffers, self._num_valid_ids, self)
        self._pools.add(pool)
        return [NativeSession(pool, row) for row in range(self.buffers.rows)]

    @property
    def lent(self) -> bool:
        return len(self._pools) > 0

    def feed(self, pool: Pool, feeds: Sequence[tuple[int, Feed]]) -> Answers | None:
        """`Pool.feed_together`; None if no recording takes these feeds."""
        if any(feed.branches is not None for _, feed in feeds):
            return None
        longest, count = max(feed.tokens.shape[0] for _, feed in feeds), self.count(len(feeds))
        if longest > self.piece(count) and self._most < MOST_TOKENS:
            return None
        if longest <= self.piece(count):
            return self._feed(pool, feeds)
        parts: list[Answers] = [[] for _ in feeds]
        done = 0
        while left := [i for i, (_, feed) in enumerate(feeds) if feed.tokens.shape[0] > done]:
            stop = done + self.piece(self.count(len(left)))
            piece = [(feeds[i][0], _part(feeds[i][1], done, stop)) for i in left]
            for i, answer in zip(left, self._feed(pool, piece), strict=True):
                parts[i].append(answer)
            done = stop
        return [_joined(answers) for answers in parts]

    def prefill(self, pool: Pool, row: int, tokens: Tensor) -> Tensor:
        """Feed tokens[n] of a prompt as far as recordings take them; return the rest."""
        self.buffers.ensure_capacity(pool.lengths[row] + tokens.shape[0])
        room = self.buffers.capacity - self.buffers.reserved - pool.lengths[row]
        for size in prefill_sizes(tokens.shape[0], room, self._forward.most_recorded_tokens):
            self._replay(pool, [(row, Feed(NativeSession(pool, row), tokens[:size], 0))], size, False)
            tokens = tokens[size:]
        return tokens

    def count(self, num: int) -> int:
        """The rows of the recording that takes `num` of them."""
        return row_count(num, self.buffers.rows)

    def takes_chains(self, count: int) -> bool:
        """True if a recording drafts so many chains together."""
        return self.count(count) * CATCH_UPS[1] <= self._most

    def draft(
        self, pool: Pool, feeds: Sequence[tuple[int, Feed]], ask: Draft, chains: Sequence[ChainStart]
    ) -> list[Drafted]:
        """`DraftsTogether.draft_together` by one replay, which drafts gamma tokens of each row."""
        layout = RowLayout.of([row for row, _ in feeds], self.buffers.rows)
        most = max(each for each in CATCH_UPS if layout.count * each <= self._most)
        feeds = [(row, self._caught_up(pool, row, feed, most)) for row, feed in feeds]
        starts, sizes = [pool.lengths[row] for row, _ in feeds], [feed.tokens.shape[0] for _, feed in feeds]
        size = next(each for each in CATCH_UPS if each >= max(sizes))
        bucket = self.bucket(max(starts) + size + ask.gamma)
        keys = [chain.rng.key if isinstance(chain.rng, HashRng) else (0, 0) for chain in chains]
        numbers = [
            (sizes, 1), (starts, UNUSED), ([chain.position for chain in chains], 0), ([key[0] for key in keys], 0),
            ([key[1] for key in keys], 0),
        ]  # fmt: skip
        given, _ = self.inputs(layout, feeds, size, numbers)
        if ends_early(ask):
            ends = [numbers_of(ask, chain.stopping, chain.length) for chain in chains]
            by_place = torch.tensor(layout.by_place(ends, numbers_of(ask, None, 0)), dtype=torch.float64)
            given.append(to_device(by_place, self._forward.device))

        def build() -> Recording:
            forward = self.forward_of(layout, bucket)
            inner = chain_recording(forward, ask, layout.count, size, self.zeros, self._capture.when)
            return Recording(lambda _, *more: inner.function(*more), (forward.rows, *inner.inputs))

        key = ("draft", layout.count, layout.in_place, size, bucket, *recording_of(ask))
        # The next replay overwrites what this one gave.
        tokens, q, states, peaks, *ending = (part.clone() for part in self.recordings.answer(key, build, given))
        result = []
        for (row, _), place, start, num, chain in zip(feeds, layout.places, starts, sizes, chains, strict=True):
            length = chain.length
            pool.lengths[row] = start + num + length - 1 + ask.feed_last_token
            kept = ask.hidden or ask.feed_last_token
            result.append(
                Drafted(
                    tokens[place, :length],
                    None if ask.warp.greedy and not ask.keep_q else q[place, :length],
                    states[place, : length + ask.feed_last_token] if kept else None,
                    peaks[place, :length],
                    probability=ending[0][place, :length] if ending else None,
                    num_drafted=ending[1][place : place + 1] if ending else None,
                )
            )
        return result

    def _caught_up(self, pool: Pool, row: int, feed: Feed, most: int) -> Feed:
        """The feed, or that of its last token, where there are more than a recording's first forward takes."""
        if feed.tokens.shape[0] <= most:
            return feed
        NativeSession(pool, row).feed(feed.tokens[:-1], rows=0)
        return replace(feed, given=feed.tokens[-1:], ids=None)

    def _feed(self, pool: Pool, feeds: Sequence[tuple[int, Feed]]) -> Answers:
        """Feed chains of at most `piece` tokens by one replay."""
        longest = max(feed.tokens.shape[0] for _, feed in feeds)
        (x, logits), wanted = self._replay(pool, feeds, next(each for each in CHAINS if each >= longest), True)
        rows = [feed.rows for _, feed in feeds]
        parts = torch.split(logits.index_select(0, wanted), rows)
        if not any(feed.hidden for _, feed in feeds):
            return [(part, None) for part in parts]
        hidden = torch.split(x.index_select(0, wanted), rows)
        return [(part, h if feed.hidden else None) for part, h, (_, feed) in zip(parts, hidden, feeds, strict=True)]

    def _replay(
        self, pool: Pool, feeds: Sequence[tuple[int, Feed]], size: int, scores: bool
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The states [R N, D] and logits [R N, V] of chains of at most `size` tokens, which the next replay overwrites,
        and the indices of those asked for. Without `scores` there are none."""
        layout = RowLayout.of([row for row, _ in feeds], self.buffers.rows)
        starts = [pool.lengths[row] for row, _ in feeds]
        bucket = self.bucket(max(starts) + size)
        given, wanted = self.inputs(layout, feeds, size, [(starts, UNUSED)])

        def build() -> Recording:
            forward = self.forward_of(layout, bucket)

            def run(_: Tensor, tokens: Tensor, start: Tensor) -> tuple[Tensor, ...]:
                x = forward.chain(tokens, start)
                return (x, forward.logits(x)) if scores else (x[-1:],)

            inputs = (forward.rows, self.zeros(layout.count * size), self.zeros(layout.count))
            return Recording(run, inputs)

        key = ("chain" if scores else "prefill", layout.count, layout.in_place, size, bucket)
        outputs = self.recordings.answer(key, build, given)
        for row, feed in feeds:
            pool.lengths[row] += feed.tokens.shape[0]
        return outputs, wanted

    def inputs(
        self, layout: RowLayout, feeds: Sequence[tuple[int, Feed]], size: int, numbers: Sequence[tuple[list[int], int]]
    ) -> tuple[list[Tensor], Tensor]:
        """Inputs of a recording: rows[R], tokens[R N], and of `numbers`, one for each feed and one for unused rows,
        each [R]. And which of the R N tokens are the last `rows` of each feed. One copy brings them to the device."""
        count, place_of = layout.count, list(zip(layout.places, feeds, strict=True))
        flat = [*layout.rows]
        for values, rest in numbers:
            flat += layout.by_place(values, rest)
        end = len(flat)
        for place, (_, feed) in place_of:
            flat += range(place * size, place * size + feed.tokens.shape[0])
        last = len(flat)
        for place, (_, feed) in place_of:
            stop = place * size + feed.tokens.shape[0]
            flat += range(stop - feed.rows, stop)
        there = integers(flat, self._forward.device)
        tokens = torch.cat([feed.tokens for _, feed in feeds])
        tokens = tokens.new_zeros(count * size).index_copy(0, there[end:last], tokens)
        parts = [there[i : i + count] for i in range(0, end, count)]
        return [parts[0], tokens, *parts[1:]], there[last:]

    @property
    def _most(self) -> int:
        """Tokens of all rows of a recording."""
        return min(MOST_TOKENS, self._forward.most_recorded_tokens)

    def piece(self, count: int) -> int:
        """The most tokens of each of `count` rows that a recording takes."""
        return max((each for each in CHAINS if count * each <= self._most), default=0)

    def bucket(self, stop: int) -> int:
        """The bucket of slots 0 .. stop - 1, for which the buffers grow."""
        self.buffers.ensure_capacity(stop)
        return min(bucket_of(stop), self.buffers.capacity)

    def forward_of(self, layout: RowLayout, bucket: int) -> RowsForward:
        rows = integers(layout.rows, self._forward.device)  # an input of the recording
        return RowsForward(self._forward, self.buffers, self._num_valid_ids, rows, layout.in_place, bucket)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._forward.device)


class RecordsTogether(ABC):
    """What a model does for several sessions by one recording: `DraftsTogether` and `FeedsThroughTogether`."""

    __slots__ = ()

    def drafts_together(self, ask: Draft, sessions: Sequence[Session], rngs: Sequence[Rng]) -> bool:
        graphs = _shared(sessions)
        return graphs is not None and graphs.takes_chains(len(sessions)) and all(self.drafts(ask, rng) for rng in rngs)

    @torch.inference_mode()
    def draft_together(self, feeds: Sequence[Feed], ask: Draft, chains: Sequence[ChainStart]) -> list[Drafted]:
        pool, rows = _rows(feeds)
        return _recordings(pool).draft(pool, rows, ask, chains)

    def takes_together(self, sessions: Sequence[Session], num: int) -> bool:
        graphs = _shared(sessions)
        return graphs is not None and num <= graphs.piece(graphs.count(len(sessions)))

    @torch.inference_mode()
    def feed_through(
        self, feeds: Sequence[Feed], then: Then, given: Sequence[Sequence[Tensor | int]]
    ) -> tuple[Tensor, Then]:
        pool, rows = _rows(feeds)
        return feed_through.together(_recordings(pool), pool, rows, then, given)

    @abstractmethod
    def drafts(self, ask: Draft, rng: Rng) -> bool: ...


def recorded_pool(session: Session) -> Pool | None:
    """The pool of a row whose forwards are recorded; None of other sessions."""
    recorded = isinstance(session, NativeSession) and isinstance(session.pool.recordings, BatchGraphs)
    return session.pool if isinstance(session, NativeSession) and recorded else None


def _shared(sessions: Sequence[Session]) -> BatchGraphs | None:
    """The recordings of the pool that all of these sessions are rows of."""
    first, *others = [recorded_pool(session) for session in sessions]
    return None if first is None or any(each is not first for each in others) else _recordings(first)


def _rows(feeds: Sequence[Feed]) -> tuple[Pool, list[tuple[int, Feed]]]:
    """The pool of these feeds' sessions, and each one's row."""
    sessions = [feed.session for feed in feeds if isinstance(feed.session, NativeSession)]
    return sessions[0].pool, [(session.row, feed) for session, feed in zip(sessions, feeds, strict=True)]


def _recordings(pool: Pool) -> BatchGraphs:
    assert isinstance(pool.recordings, BatchGraphs)
    return pool.recordings


def _part(feed: Feed, start: int, stop: int) -> Feed:
    """The feed of a feed's tokens start .. stop - 1."""
    stop = min(stop, num := feed.tokens.shape[0])
    rows = min(max(feed.rows - (num - stop), 0), stop - start)
    return replace(feed, given=feed.tokens[start:stop], rows=rows, ids=None)


def _joined(answers: Answers) -> tuple[Tensor, Tensor | None]:
    """The answer to a feed from those to its parts."""
    if len(answers) == 1:
        return answers[0]
    states = [hidden for _, hidden in answers if hidden is not None]
    return torch.cat([logits for logits, _ in answers]), torch.cat(states) if states else None
