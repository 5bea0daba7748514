"""A head that drafts from the target's hidden states, as a `Model`: it scores what follows texts that the target reads.

Shapes: N tokens, R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import HashRng, Rng
from specexp.decoding.rules import Warp
from specexp.lm.heads.base import HeadDraft
from specexp.lm.heads.eagle3_forward import Eagle3Forward
from specexp.lm.heads.head_graphs import HeadGraphs
from specexp.lm.heads.head_session import HeadSession
from specexp.lm.model import Feed, one_by_one
from specexp.lm.native.attention import BatchAttention
from specexp.lm.native.graph_capture import Capture
from specexp.lm.native.graph_pools import GraphPools
from specexp.lm.native.kv_cache import Pool
from specexp.lm.native.native_forward import NativeForward
from specexp.lm.threads import Threads
from specexp.lm.transfer import integers


def native(forward: Eagle3Forward) -> NativeForward:
    """The forward as pools take it: they read what it stores, and leave calling it to their sessions."""
    return cast(NativeForward, forward)


@dataclass(slots=True, eq=False)
class HeadModel(HeadDraft):
    """A head and the target that it was trained for, whose sessions keep the states that it reads."""

    forward: Eagle3Forward
    capture: Capture | None = None  # records chains, if the target's forwards are recorded
    graph_pools: GraphPools | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.capture is not None:
            self.graph_pools = GraphPools(native(self.forward), self.capture, None, partial(HeadGraphs, self))

    @property
    def device(self) -> torch.device:
        return self.forward.device

    def session(self) -> HeadSession:
        return self.sessions(1)[0]

    @torch.inference_mode()
    def sessions(self, count: int, capacity: int = 0) -> list[HeadSession]:
        if count == 1 and self.graph_pools is not None:
            return [cast(HeadSession, self.graph_pools.session(capacity))]
        pool = Pool.empty(native(self.forward), count, capacity)
        return [HeadSession(self, pool, row) for row in range(count)]

    @torch.inference_mode()
    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Tensor, Tensor | None]]:
        sessions = [feed.session for feed in feeds if isinstance(feed.session, HeadSession)]
        pairs = list(zip(sessions, feeds, strict=True))
        if len(feeds) == 1 or not all(session.is_simple(feed) for session, feed in pairs):
            return one_by_one(feeds)
        ready = [session.prepared(feed) for session, feed in pairs]
        pool, forward = sessions[0].pool, self.forward
        many = BatchAttention(pool, [(s.row, feed) for s, (feed, _) in zip(sessions, ready, strict=True)])
        with Threads(forward.threads[True]):
            x = forward(many.tokens, torch.cat([features for _, features in ready]), many.angles, many)
        for session, (feed, _) in zip(sessions, ready, strict=True):
            pool.lengths[session.row] += feed.tokens.shape[0]
        chosen = many.scored(x)
        sizes = [feed.rows for feed, _ in ready]
        parts = zip(torch.split(forward.logits(chosen), sizes), torch.split(chosen, sizes), ready, strict=True)
        return [(logits, forward.hidden(x) if feed.hidden else None) for logits, x, (feed, _) in parts]

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        if ask.min_draft_probability:
            return False
        if self.graph_pools is None:  # the engine counts what its steps read from the device
            return ask.costs is None or self.device.type == "cpu"
        return type(ask.warp) is Warp and (ask.warp.greedy or isinstance(rng, HashRng))

    def draft(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None = None
    ) -> Drafted:
        assert isinstance(feed.session, HeadSession)
        return feed.session.draft(feed.tokens, ask, length, rng, position, stopping)

    def ids(self, tokens: Sequence[int]) -> Tensor:
        return integers(tokens, self.device)

    def check_trees(self) -> None:
        """Every head takes trees."""
