"""A head that drafts from the target's hidden states, as a `Model`: it scores what follows texts that the target reads.

Shapes: N tokens, R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import Rng
from specexp.lm.heads.eagle3_forward import Eagle3Forward
from specexp.lm.heads.head_session import HeadSession
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Feed, one_by_one
from specexp.lm.native.attention import BatchAttention
from specexp.lm.native.draft_loop import draft_chain
from specexp.lm.native.kv_cache import Buffers, Pool
from specexp.lm.threads import Threads
from specexp.lm.transfer import integers


@dataclass(slots=True, eq=False)
class HeadModel:
    """A head and the target that it was trained for, whose sessions keep the states that it reads."""

    target: HFModel
    forward: Eagle3Forward
    name: str
    facts_of_head: dict[str, Any]
    notes: Sequence[str] = ()

    @property
    def vocab_size(self) -> int:
        return self.target.vocab_size

    @property
    def context(self) -> int:
        return self.target.context

    @property
    def device(self) -> torch.device:
        return self.forward.device

    def session(self) -> HeadSession:
        return self.sessions(1)[0]

    @torch.inference_mode()
    def sessions(self, count: int, capacity: int = 0) -> list[HeadSession]:
        pool: Any = Pool(self.forward, Buffers(self.forward, count, capacity))  # type: ignore[arg-type]
        return [HeadSession(self, pool, row) for row in range(count)]

    @torch.inference_mode()
    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Tensor, Tensor | None]]:
        sessions = [feed.session for feed in feeds if isinstance(feed.session, HeadSession)]
        prepared = [each.prepared(feed) for each, feed in zip(sessions, feeds, strict=True)]
        ready = [each for each in prepared if each is not None]
        if len(feeds) == 1 or len(ready) < len(feeds):
            return one_by_one(feeds)
        pool, forward = sessions[0].pool, self.forward
        many = BatchAttention(pool, [(s.row, feed) for s, (feed, _) in zip(sessions, ready, strict=True)])
        with Threads(forward.threads[True]):
            x = forward(many.tokens, torch.cat([features for _, features in ready]), many.angles, many)
        for session, (feed, _) in zip(sessions, ready, strict=True):
            pool.lengths[session.row] += feed.tokens.shape[0]
        chosen = x.index_select(0, many.wanted)
        sizes = [feed.rows for feed, _ in ready]
        parts = zip(torch.split(forward.logits(chosen), sizes), torch.split(forward.hidden(chosen), sizes), strict=True)
        return [(part, h if feed.hidden else None) for (part, h), (feed, _) in zip(parts, ready, strict=True)]

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        # The engine counts what its steps read from the device.
        return not ask.min_draft_probability and (ask.costs is None or self.device.type == "cpu")

    def draft(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None = None
    ) -> Drafted:
        assert isinstance(feed.session, HeadSession)
        return draft_chain(feed.session, feed.tokens, ask, length, rng, position, stopping)

    def ids(self, tokens: Sequence[int]) -> Tensor:
        return integers(tokens, self.device)

    def check_cache(self) -> None:
        """A head's cache is the own one."""

    def check_trees(self) -> None:
        """Every head takes trees."""

    def facts(self) -> dict[str, Any]:
        return self.facts_of_head

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
