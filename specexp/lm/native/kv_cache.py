"""Key-value buffers for `NativeForward`: preallocated, written in place, and truncated by lowering a length.

A pool holds the rows of one or several sequences. A single sequence is fed through slices of its row, without indexing;
several are fed together, each at its own length. A step allocates nothing for keys and values,
unless a sequence outgrows its buffer, which then doubles. Two pools whose first layers are the same ones, those of a
target and of a draft made of its layers, may have the same buffers. For a draft that reads the target's hidden states,
buffers keep those of some layers beside the keys and values (`NativeForward.kept`).

Shapes: L layers that store keys and values, B rows, C capacity in slots, W values per token and layer (the largest of
all layers), N tokens fed to a row, K key-value heads and d head size of a layer, T layers whose states are kept, D
hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from specexp.lm.blocks.rotary import Angles
from specexp.lm.model import CHUNK, Branches, Feed, Session, in_pieces
from specexp.lm.native.attention import BatchAttention, SingleRowAttention, additive, tree_attention
from specexp.lm.native.native_forward import Cache, NativeForward
from specexp.lm.native.ordered_cache import OrderedBatch, row_cache
from specexp.lm.threads import Threads
from specexp.lm.transfer import integers, to_device

LEAST = 64
ALIGNMENT = 16  # bytes: attention on CUDA rejects a mask that is not aligned, and copies one whose rows are not
SHORT = 64  # masks of up to this many tokens are cached for every alignment


@dataclass(slots=True, eq=False)
class Buffers:
    """Keys and values [L, B, C, W], zeroed: slots that were never written are masked, and must not hold NaN.

    The last `reserved` slots of every row hold no sequence; with them, capacities are powers of two.
    """

    forward: NativeForward
    rows: int
    capacity: int
    reserved: int = 0
    values: Tensor = field(init=False)
    states: Tensor | None = field(init=False)  # [T, B, C, D]; None if none are kept
    flat: list[list[Tensor]] = field(init=False)  # [row][layer]: [C, W]
    split: list[list[tuple[Tensor, Tensor]]] = field(init=False)  # keys and values [1, K, C, d]
    _bands: dict[tuple[int, int, int, int], tuple[int, Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.capacity = max(LEAST, self.capacity)
        self.values, self.states = self._zeros()
        self._view()

    def _zeros(self) -> tuple[Tensor, Tensor | None]:
        forward = self.forward
        stored = [block.spec for block in forward.blocks if block.spec.stores]
        shape = (len(stored), self.rows, self.capacity, max(spec.kv_width for spec in stored))
        values = torch.zeros(shape, dtype=forward.dtype, device=forward.device)
        if not forward.kept:
            return values, None
        return values, values.new_zeros(len(forward.kept), self.rows, self.capacity, forward.hidden_size)

    def _view(self) -> None:
        stored = [block.spec for block in self.forward.blocks if block.spec.stores]
        self.flat, self.split = [], []
        for row in range(self.rows):
            layers = [self.values[spec.store, row, :, : spec.kv_width] for spec in stored]
            parts = [
                layer.view(1, self.capacity, 2, spec.kv_heads, spec.head_dim).transpose(1, 3)
                for layer, spec in zip(layers, stored, strict=True)
            ]
            self.flat.append(layers)
            self.split.append([(part[:, :, 0], part[:, :, 1]) for part in parts])
        self._bands.clear()

    def ensure_capacity(self, slots: int) -> None:
        """Grow to at least `slots` slots in every row, without those that are reserved."""
        slots += self.reserved
        if slots <= self.capacity:
            return
        old, states = self.values, self.states
        self.capacity = max(slots, 2 * self.capacity)
        if self.reserved:
            self.capacity = 1 << (self.capacity - 1).bit_length()
        self.values, self.states = self._zeros()
        self.values[:, :, : old.shape[2]] = old
        if self.states is not None and states is not None:
            self.states[:, :, : old.shape[2]] = states
        self._view()

    def causal_mask(self, num: int, start: int, window: int, group: int) -> Tensor:
        """The additive causal mask of `num` tokens from slot `start` on over slots 0 .. start + num - 1: a view
        [num group, start + num] of a cached tensor of zeros and minus infinities, with each row repeated for the
        `group` heads that share a key.

        The view begins at an aligned address: for each start modulo the alignment there is one cached tensor, shifted
        by that amount. Of long masks, which prompts need, only the latest is cached.
        """
        forward = self.forward
        size, shift = 1 << (num - 1).bit_length(), start % (ALIGNMENT // forward.dtype.itemsize)
        key = (size, window, group, shift if size <= SHORT else 0)
        left = _rounded_up(self.capacity) + shift
        made_for, rows = self._bands.get(key, (-1, self.values))
        if made_for != shift:
            i = torch.arange(size, device=forward.device)[:, None] + left
            j = torch.arange(_rounded_up(left + size), device=forward.device)[None, :]
            seen = j <= i if not window else (j <= i) & (j > i - window)
            rows = additive(seen, forward.dtype).repeat_interleave(group, dim=0)
            self._bands[key] = shift, rows
        return rows[: num * group, left - start : left + num]


class RowRecordings(Protocol):
    """Recorded forwards of several rows of the same buffers."""

    def feed(self, pool: Pool, feeds: Sequence[tuple[int, Feed]]) -> list[tuple[Tensor, Tensor | None]] | None:
        """`Pool.feed_together`; None if no recording takes these feeds."""
        ...

    def prefill(self, pool: Pool, row: int, tokens: Tensor) -> Tensor:
        """Feed tokens[n] of a prompt as far as recordings take them; return the rest."""
        ...


@dataclass(slots=True, eq=False, weakref_slot=True)
class Pool:
    """The rows of sequences that can be fed together, in buffers of their own or in those of another pool."""

    forward: NativeForward
    buffers: Buffers
    num_valid_ids: int | None = None  # how many of the ids that the head scores are used
    recordings: RowRecordings | None = None
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = [0] * self.buffers.rows

    @classmethod
    def empty(cls, forward: NativeForward, rows: int, capacity: int, num_valid_ids: int | None = None) -> Pool:
        """A pool of `rows` sequences with `capacity` slots each."""
        return cls(forward, Buffers(forward, rows, capacity), num_valid_ids)

    @property
    def capacity(self) -> int:
        return self.buffers.capacity

    def truncate(self, row: int, length: int, slots: Sequence[int]) -> None:
        """Keep the first `length` slots of a row, followed by `slots`."""
        assert 0 <= length <= self.lengths[row], f"cannot truncate to {length} of {self.lengths[row]} slots"
        if slots:
            kept = integers(slots, self.forward.device)
            for each in (self.buffers.values, self.buffers.states):
                if each is not None:
                    here = each[:, row]
                    here[:, length : length + len(slots)] = here.index_select(1, kept)
        self.lengths[row] = length + len(slots)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, V] in float32 of final hidden states [N, D], for the ids that are used."""
        result = self.forward.logits(x)
        return (
            result
            if self.num_valid_ids is None or self.num_valid_ids >= result.shape[1]
            else result[:, : self.num_valid_ids]
        )

    def feed_together(self, feeds: Sequence[tuple[int, Feed]]) -> list[tuple[Tensor, Tensor | None]]:
        """Feed several rows in one pass over the weights, by a recording if there is one."""
        if self.recordings is not None and (recorded := self.recordings.feed(self, feeds)) is not None:
            return recorded
        # Rows that end and join change the order of feeds; attention reads rows in place that come one after the other.
        order = sorted(range(len(feeds)), key=lambda i: feeds[i][0])
        answers = dict(zip(order, self._feed_in_order([feeds[i] for i in order]), strict=True))
        return [answers[i] for i in range(len(feeds))]

    def _feed_in_order(self, feeds: Sequence[tuple[int, Feed]]) -> list[tuple[Tensor, Tensor | None]]:
        """`feed_together` without recordings, for rows in ascending order."""
        forward = self.forward
        many = OrderedBatch(self, feeds) if forward.invariant else BatchAttention(self, feeds)
        with Threads(forward.threads[True]):
            x = forward(many.tokens, many.angles, many.cache)
        for row, feed in feeds:
            self.lengths[row] += feed.tokens.shape[0]
        chosen = many.scored(x)
        logits = self.logits(chosen)
        sizes = [feed.rows for _, feed in feeds]
        parts, hidden = torch.split(logits, sizes), torch.split(chosen, sizes)
        return [(part, h if feed.hidden else None) for part, h, (_, feed) in zip(parts, hidden, feeds, strict=True)]


@dataclass(slots=True, eq=False)
class NativeSession:
    """One row of a pool, as a `Session`."""

    pool: Pool
    row: int

    @property
    def length(self) -> int:
        return self.pool.lengths[self.row]

    @torch.inference_mode()
    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        pool = self.pool
        if pool.recordings is not None and not rows and branches is None:
            tokens = pool.recordings.prefill(pool, self.row, tokens)
        num = tokens.shape[0]
        if not num:
            return self._nothing(hidden)
        pool.buffers.ensure_capacity(self.length + num)
        if num > CHUNK and branches is None:
            return in_pieces(self.feed, torch.split(tokens, CHUNK), rows, hidden)
        chosen = self._run(tokens, branches)[num - rows :]
        return (pool.logits(chosen), chosen if hidden else None) if rows else self._nothing(hidden)

    def _nothing(self, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """The answer to a feed of which nothing is scored."""
        forward, like = self.pool.forward, self.pool.forward.embedding
        logits = like.new_empty(0, self.pool.num_valid_ids or forward.head.weight.shape[0])
        return logits, like.new_empty(0, forward.hidden_size) if hidden else None

    def _run(self, tokens: Tensor, branches: Branches | None) -> Tensor:
        pool, forward = self.pool, self.pool.forward
        start, num = self.length, tokens.shape[0]
        angles, tree = forward.angles(start + num), None
        if forward.invariant:
            ordered = row_cache(pool, self.row, start, num, branches)
            x = forward(tokens, angles.take(ordered.positions), ordered)
            pool.lengths[self.row] = start + num
            return x
        if branches is None:
            angles = angles.at(start, start + num)
        else:
            tree = tree_attention(start, num, branches)
            angles = angles.take(to_device(tree[1][start:], forward.device))
        alone = SingleRowAttention(pool, self.row, start, num, tree)
        with Threads(forward.threads[num > 1]):
            x = forward(tokens, angles, alone)
        pool.lengths[self.row] = start + num
        return x

    def begin(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """Feed what a chain follows (`draft_loop.ChainSession`)."""
        if tokens.shape[0] > 2:  # what others proposed: one forward, which is the chain's first step
            return self.feed(tokens, 1, hidden=True)[1], tokens[-1:]
        if tokens.shape[0] > 1:
            self.feed(tokens[:-1], rows=0)
        return None, tokens[-1:]

    def step(self, tokens: Tensor, at: int, angles: Angles) -> Tensor:
        """The final hidden state [1, D] of one token in slot `at`."""
        make: Callable[..., Cache] = row_cache if self.pool.forward.invariant else SingleRowAttention
        return self.pool.forward(tokens, angles.at(at, at + 1), make(self.pool, self.row, at, 1, None))

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        if slots:
            with torch.inference_mode():
                self.pool.truncate(self.row, length, slots)
        else:
            self.pool.truncate(self.row, length, slots)

    def slots(self) -> object:
        layers = self.pool.buffers.flat[self.row]
        stores = sum(block.spec.stores for block in self.pool.forward.blocks)
        return tuple(tuple(layer[: self.length].flatten().tolist()) for layer in layers[:stores])

    def states(self, start: int, stop: int) -> Tensor:
        """The kept states [N, T D] of the slots start .. stop - 1, those of all layers side by side."""
        kept = self.pool.buffers.states
        assert kept is not None, "no states are kept"
        assert stop <= self.length, f"no states of slots {start} to {stop}"
        return kept[:, self.row, start:stop].transpose(0, 1).flatten(1)

    def follow(self, leader: Session) -> None:
        """Hold what `leader` holds, a session in the same buffers."""
        self.pool.lengths[self.row] = leader.length


@torch.inference_mode()
def together(feeds: Sequence[Feed]) -> list[tuple[Tensor, Tensor | None]]:
    """Feed several sessions of one pool in one pass over the weights."""
    sessions = [feed.session for feed in feeds]
    pools = {id(session.pool): session.pool for session in sessions if isinstance(session, NativeSession)}
    assert len(pools) == 1, "sessions of several pools"
    (pool,) = pools.values()
    rows = [session.row for session in sessions if isinstance(session, NativeSession)]
    return pool.feed_together(list(zip(rows, feeds, strict=True)))


def _rounded_up(width: int) -> int:
    """Round up to a multiple of ALIGNMENT values, which is aligned in any dtype."""
    return -(-width // ALIGNMENT) * ALIGNMENT
