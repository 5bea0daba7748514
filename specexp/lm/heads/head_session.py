"""The session of a head that drafts from the target's hidden states.

A slot holds a token and its feature, which says what came before it. The first token of a text has no feature, and so
no slot. Features of committed tokens come from the states that the target's session keeps; those of drafted tokens are
the head's own outputs at the token before, and what they leave in the cache is dropped when the round is committed.

Shapes: N tokens, R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import Rng
from specexp.lm.blocks.rotary import Angles
from specexp.lm.heads.reading import ReadStates
from specexp.lm.model import CHUNK, Branches, Feed, Session
from specexp.lm.native.attention import SingleRowAttention, tree_attention
from specexp.lm.native.draft_loop import draft_chain
from specexp.lm.native.kv_cache import Pool
from specexp.lm.threads import Threads
from specexp.lm.transfer import integers, to_device

if TYPE_CHECKING:
    from specexp.lm.heads.head_graphs import HeadGraphs
    from specexp.lm.heads.head_model import HeadModel


class HeadSession:
    """One row of a head's pool: token i of the text, from 1 on, is in slot i - 1."""

    def __init__(self, model: HeadModel, pool: Pool, row: int, graphs: HeadGraphs | None = None) -> None:
        self.pool, self.row, self._model, self._graphs = pool, row, model, graphs
        self._begun = False  # whether the text's first token was fed
        self._num_known = 0  # slots of committed tokens, whose features are the target's
        self._ids: Sequence[int] = ()  # committed
        self._states = ReadStates(model.target)

    @property
    def length(self) -> int:
        return self.pool.lengths[self.row] + self._begun

    def read(self, ids: Sequence[int], keeper: Session | None) -> None:
        self._num_known = max(0, len(ids) - 1)
        self._ids = ids
        self._states.use(keeper)

    @torch.inference_mode()
    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        forward = self._model.forward
        with Threads(forward.threads[tokens.shape[0] > 1]):
            x = self.outputs(tokens, rows, branches)
        return self.pool.logits(x) if rows else x.new_empty(0, forward.num_ids), forward.hidden(x) if hidden else None

    def outputs(self, tokens: Tensor, rows: int, branches: Branches | None = None) -> Tensor:
        """Feed tokens[N]; the head's outputs [R, D] of the last ones. That of the text's first token is zero."""
        tokens, branches, first = self.in_slots(tokens, branches)
        parts = [tokens.new_zeros(first, self._model.forward.hidden_size, dtype=self._model.forward.dtype)]
        for piece in self.pieces(tokens.shape[0], branches):
            parts.append(self._run(tokens[piece], branches))
        x = torch.cat(parts) if first or len(parts) != 2 else parts[1]
        return x[x.shape[0] - rows :]

    def in_slots(self, tokens: Tensor, branches: Branches | None) -> tuple[Tensor, Branches | None, int]:
        """The tokens that get a slot, their branches by slot, and how many have none: the text's first token."""
        first = int(not self._begun and tokens.shape[0] > 0)
        self._begun = self._begun or first > 0
        return tokens[first:], branches and replace(branches, base=branches.base - 1), first

    def pieces(self, num: int, branches: Branches | None) -> list[slice]:
        """The tokens in forwards: none has the output of another one in the same forward as its feature."""
        start = self.pool.lengths[self.row]
        self.pool.buffers.ensure_capacity(start + num)
        known = min(max(0, self._num_known - start), num)
        starts, begun = list(range(0, known, CHUNK)), known
        for i in range(known, num):
            if i == known or self._before(start + i, branches) >= start + begun:
                starts.append(i)
                begun = i
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], num], strict=True)] if starts else []

    def _before(self, slot: int, branches: Branches | None) -> int:
        """The slot of the token before the one in `slot`."""
        if branches is None or slot < branches.base:
            return slot - 1
        path = branches.ancestors[slot - branches.base]
        return branches.base + path[-2] if len(path) > 1 else branches.base - 1

    def features(self, num: int, branches: Branches | None) -> Tensor:
        """[N, D] of the next `num` tokens, which are one of `pieces`."""
        start = self.pool.lengths[self.row]
        known = min(max(0, self._num_known - start), num)
        if known:
            assert known == num, "a piece has committed tokens or drafted ones"
            # The target's slot has the token before that of the head's.
            states = self._states.of(start, start + num, lambda stop: list(self._ids[:stop]))
            return self._model.forward.features(states)
        kept = self.pool.buffers.states
        assert kept is not None
        own = kept[0, self.row]
        before = [self._before(slot, branches) for slot in range(start, start + num)]
        if before == [start - 1] and start:
            return own[start - 1 : start]
        result = own.index_select(0, integers([max(0, each) for each in before], own.device))
        if before[0] < 0:
            result[[each < 0 for each in before]] = 0  # after the text's first token, which has no output
        return result

    def _run(self, tokens: Tensor, branches: Branches | None) -> Tensor:
        pool, forward, num = self.pool, self._model.forward, tokens.shape[0]
        start = pool.lengths[self.row]
        angles, tree = forward.angles(start + num), None
        if branches is None or start + num <= branches.base:
            angles = angles.at(start, start + num)
        else:
            tree = tree_attention(start, num, branches)
            angles = angles.take(to_device(tree[1][start:], forward.device))
        x = forward(
            tokens, self.features(num, branches), angles, SingleRowAttention(pool, self.row, start, num, tree)
        )  # fmt: skip
        pool.lengths[self.row] = start + num
        return x

    def draft(
        self, tokens: Tensor, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None
    ) -> Drafted:
        """`Drafts.draft` after tokens[n], by a recording if there are such and it takes so many."""
        graphs = self._graphs
        if graphs is None or not self._begun or not graphs.catches_up(tokens.shape[0]):
            return draft_chain(self, tokens, ask, length, rng, position, stopping)
        with torch.inference_mode():
            self.pool.buffers.ensure_capacity(self.pool.lengths[self.row] + tokens.shape[0])
            features = self.features(tokens.shape[0], None)
            return graphs.chain(features, tokens, ask, length, rng, position, stopping)

    def begin(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Feed what a chain follows: the output [1, D] of the last token, and that token."""
        return self.outputs(tokens, 1), tokens[-1:]

    def step(self, tokens: Tensor, at: int, angles: Angles) -> Tensor:
        """The output [1, D] of one drafted token in slot `at`."""
        kept = self.pool.buffers.states
        assert kept is not None
        features = kept[0, self.row, at - 1 : at] if at else kept.new_zeros(1, kept.shape[3])
        cache = SingleRowAttention(self.pool, self.row, at, 1)
        return self._model.forward(tokens, features, angles.at(at, at + 1), cache)

    def is_simple(self, feed: Feed) -> bool:
        """True if one forward answers it: `prepared`."""
        if not self._begun or not feed.tokens.shape[0]:
            return False
        tokens, branches, _ = self.in_slots(feed.tokens, feed.branches)
        return len(self.pieces(tokens.shape[0], branches)) == 1

    def prepared(self, feed: Feed) -> tuple[Feed, Tensor]:
        """The feed in slots, and its features."""
        tokens, branches, _ = self.in_slots(feed.tokens, feed.branches)
        return Feed(self, tokens, feed.rows, feed.hidden, branches), self.features(tokens.shape[0], branches)

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self.length, f"cannot truncate to {length} of {self.length} slots"
        self._begun = length > 0
        with torch.inference_mode():
            self.pool.truncate(self.row, max(0, length - 1), [slot - 1 for slot in slots])

    def slots(self) -> object:
        layers = self.pool.buffers.flat[self.row]
        return self._begun, tuple(tuple(layer[: self.pool.lengths[self.row]].flatten().tolist()) for layer in layers)
