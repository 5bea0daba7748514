"""Captured chains of a head: features, forwards, warping and rng in one recording (`cuda_graphs.py`).

The first forward takes the features of committed tokens, computed before; each later one reads the output at the slot
before its own. Other feeds of a head (prompts, the levels of a tree, several rows) are not captured.

Shapes: N tokens of the first forward, padding included, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import Rng
from specexp.lm.heads.eagle3_forward import Eagle3Forward
from specexp.lm.heads.head_session import HeadSession
from specexp.lm.model import Session
from specexp.lm.native.bucketed_forward import Bucket, BucketForward
from specexp.lm.native.cuda_graphs import Graphs
from specexp.lm.native.graph_capture import Capture, Recording
from specexp.lm.native.kv_cache import Pool

if TYPE_CHECKING:
    from specexp.lm.heads.head_model import HeadModel


class HeadGraphs(Graphs):
    """The recordings for a pool of one row."""

    def __init__(self, model: HeadModel, pool: Pool, capture: Capture) -> None:
        super().__init__(pool, capture)
        self._model = model

    def _new_session(self) -> Session:
        return HeadSession(self._model, self.pool, 0, self)

    def chain(
        self, features: Tensor, tokens: Tensor, ask: Draft, length: int, rng: Rng, position: int,
        stopping: Stopping | None,
    ) -> Drafted:  # fmt: skip
        """Draft `length` tokens after committed tokens[n] with features[n, D], which `catches_up` takes."""
        return self.draft(tokens, ask, length, rng, position, stopping, (features,))

    def _drafting(self, size: int, bucket: int, ask: Draft) -> Recording:
        forward = _HeadBucket(self.pool, bucket)
        inner = self._chain_of(forward, size, ask)
        features = torch.zeros(size, forward.head.hidden_size, dtype=forward.head.dtype, device=forward.head.device)

        def run(given: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            forward.given = given
            return inner.function(*inputs)

        return Recording(run, (features, *inner.inputs))


class _HeadBucket(BucketForward):
    """A head's forward over a bucket; `given` are the features of the next one, which is the first of a chain."""

    def __init__(self, pool: Pool, bucket: int) -> None:
        super().__init__(pool, bucket)
        self.head = cast(Eagle3Forward, pool.forward)
        self.given: Tensor | None = None

    def chain(self, tokens: Tensor, start: Tensor) -> Tensor:
        assert self._states is not None
        before, self.given = self.given, None
        features = self._states[0].index_select(0, start - 1) if before is None else before
        slots = start + self._columns[: tokens.shape[0]]
        seen = {0: self._columns <= slots[:, None]}
        cache = Bucket(self._forward, self._flat, self._split, self._states, slots, seen)
        return self.head(tokens, features, self._angles.take(slots), cache)
