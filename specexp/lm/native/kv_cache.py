"""Key-value buffers for `OwnForward`: allocated ahead, written in place, cut back by forgetting a length.

A pool holds the rows of one or several sequences. One sequence is fed by slices of its row, without an index; several
are fed together, each at its own length. Nothing is allocated for keys and values in a step,
unless a sequence outgrows its buffer, which then doubles.

Shapes: L layers, B rows, C capacity in slots, W values a token keeps in a layer, N tokens fed to a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from specexp.lm.model import CHUNK, Branches, Feed, in_pieces
from specexp.lm.native.native_forward import OwnForward
from specexp.lm.threads import Threads, fastest
from specexp.lm.transfer import integers, sent

LEAST = 64
ALIGNMENT = 16  # bytes: attention on CUDA takes no mask that begins elsewhere, and copies one whose rows do
SHORT = 64  # tokens of a band that is kept for every alignment


@dataclass(slots=True, eq=False)
class Pool:
    """Buffers [L, B, C, W], zeroed: what was never written is masked, and must not be NaN."""

    forward: OwnForward
    rows: int
    capacity: int
    known: int | None = None  # of the ids the head scores, those that are used
    lengths: list[int] = field(init=False)
    values: Tensor = field(init=False)
    flat: list[list[Tensor]] = field(init=False)  # [row][layer]: [C, W]
    split: list[list[tuple[Tensor, Tensor]]] = field(init=False)  # keys and values [1, K, C, d]
    _bands: dict[tuple[int, int, int], tuple[int, Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths = [0] * self.rows
        self.capacity = max(LEAST, self.capacity)
        self.values = self._zeros()
        self._view()

    def _zeros(self) -> Tensor:
        own = self.forward
        shape = (len(own.layers), self.rows, self.capacity, own.kv_width)
        return torch.zeros(shape, dtype=own.dtype, device=own.device)

    def _view(self) -> None:
        own = self.forward
        self.flat = [list(self.values[:, row].unbind(0)) for row in range(self.rows)]
        self.split = []
        for row in self.flat:
            parts = [layer.view(1, self.capacity, 2, own.kv_heads, own.head_dim).transpose(1, 3) for layer in row]
            self.split.append([(part[:, :, 0], part[:, :, 1]) for part in parts])
        self._bands.clear()

    def reach(self, slots: int) -> None:
        """Have room for so many slots in every row."""
        if slots <= self.capacity:
            return
        old, used = self.values, max(self.lengths)
        self.capacity = max(slots, 2 * self.capacity)
        self.values = self._zeros()
        self.values[:, :, :used] = old[:, :, :used]
        self._view()

    def band(self, num: int, start: int, window: int) -> Tensor:
        """What `num` tokens from slot `start` on see of slots 0 .. start + num - 1: a view [num, start + num] of zeros
        and minus infinities, which is there already. A row for each head that shares a key.

        It begins at an aligned address: for each start modulo the alignment there is a band that is shifted by as much.
        Of long ones, which prompts take, the latest is kept.
        """
        own = self.forward
        size, shift = 1 << (num - 1).bit_length(), start % (ALIGNMENT // own.dtype.itemsize)
        key = (size, window, shift if size <= SHORT else 0)
        left = _rounded_up(self.capacity) + shift
        made_for, rows = self._bands.get(key, (-1, self.values))
        if made_for != shift:
            i = torch.arange(size, device=own.device)[:, None] + left
            j = torch.arange(_rounded_up(left + size), device=own.device)[None, :]
            seen = j <= i if not window else (j <= i) & (j > i - window)
            rows = additive(seen, own.dtype).repeat_interleave(own.heads // own.kv_heads, dim=0)
            self._bands[key] = shift, rows
        return rows[: num * own.heads // own.kv_heads, left - start : left + num]

    def keep(self, row: int, length: int, slots: Sequence[int]) -> None:
        """Keep the first `length` slots of a row and behind them `slots`."""
        assert 0 <= length <= self.lengths[row], f"cannot keep {length} of {self.lengths[row]} slots"
        if slots:
            kept = integers(slots, self.values.device)
            here = self.values[:, row]
            here[:, length : length + len(slots)] = here.index_select(1, kept)
        self.lengths[row] = length + len(slots)

    def logits(self, x: Tensor) -> Tensor:
        """What follows final hidden rows[N, D]: [N, V] in float32, of the ids that are used."""
        found = self.forward.head(x).float()
        return found if self.known is None or self.known >= found.shape[1] else found[:, : self.known]

    def feed_together(self, feeds: Sequence[tuple[int, Feed]]) -> list[tuple[Tensor, Tensor | None]]:
        """Feed several rows in one pass over the weights."""
        own, many = self.forward, _Together(self, feeds)
        with Threads(own.threads[True]):
            x = own(many.tokens, many.cos, many.sin, many)
        for row, feed in feeds:
            self.lengths[row] += feed.tokens.shape[0]
        chosen = x.index_select(0, many.wanted)
        logits = self.logits(chosen)
        sizes = [feed.rows for _, feed in feeds]
        parts, hidden = torch.split(logits, sizes), torch.split(chosen, sizes)
        return [(part, h if feed.hidden else None) for part, h, (_, feed) in zip(parts, hidden, feeds, strict=True)]


@dataclass(slots=True, eq=False)
class OwnSession:
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
        pool, own = self.pool, self.pool.forward
        num = tokens.shape[0]
        pool.reach(self.length + num)
        if num > CHUNK and branches is None:
            return in_pieces(self.feed, torch.split(tokens, CHUNK), rows, hidden)
        chosen = self._run(tokens, branches)[num - rows :]
        logits = pool.logits(chosen) if rows else chosen.new_empty(0, pool.known or own.head.weight.shape[0])
        return logits, chosen if hidden else None

    def _run(self, tokens: Tensor, branches: Branches | None) -> Tensor:
        pool, own = self.pool, self.pool.forward
        start, num = self.length, tokens.shape[0]
        cos, sin = own.angles(start + num)
        if branches is None:
            cos, sin, tree = cos[start : start + num], sin[start : start + num], None
        else:
            tree = visible(start, num, branches)
            positions = sent(tree[1][start:], own.device)
            cos, sin = cos.index_select(0, positions), sin.index_select(0, positions)
        alone = Alone(pool, self.row, start, num, tree)
        with Threads(own.threads[num > 1]):
            x = own(tokens, cos, sin, alone)
        pool.lengths[self.row] = start + num
        return x

    def keep(self, length: int, slots: Sequence[int] = ()) -> None:
        if slots:
            with torch.inference_mode():
                self.pool.keep(self.row, length, slots)
        else:
            self.pool.keep(self.row, length, slots)

    def slots(self) -> object:
        return tuple(tuple(layer[: self.length].flatten().tolist()) for layer in self.pool.flat[self.row])


@torch.inference_mode()
def tune(own: OwnForward) -> None:
    """Choose the threads of this forward by trying, on a processor with several."""
    if own.device.type != "cpu":
        return
    session = OwnSession(Pool(own, 1, LEAST), 0)

    def forward(rows: int) -> None:
        session.keep(0)
        session.feed(torch.zeros(rows, dtype=torch.int64), rows)

    own.threads = fastest(forward, torch.get_num_threads())


@torch.inference_mode()
def together(feeds: Sequence[Feed]) -> list[tuple[Tensor, Tensor | None]]:
    """Feed several sessions of one pool in one pass over the weights."""
    sessions = [feed.session for feed in feeds]
    pools = {id(session.pool): session.pool for session in sessions if isinstance(session, OwnSession)}
    assert len(pools) == 1, "sessions of several pools"
    (pool,) = pools.values()
    rows = [session.row for session in sessions if isinstance(session, OwnSession)]
    return pool.feed_together(list(zip(rows, feeds, strict=True)))


def visible(start: int, num: int, branches: Branches) -> tuple[Tensor, Tensor]:
    """Which slots [num, start + num] the tokens in slots start .. start + num - 1 see, and every slot's position. On
    the host, where the tree is."""
    base, stop = branches.base, start + num
    at = torch.arange(stop)
    at[base:] = base + torch.tensor(branches.depths[: stop - base])
    sees = torch.arange(stop)[None, :] <= torch.arange(start, stop)[:, None]
    first = max(start, base)
    sees[first - start :, base:] = False
    rows, columns = [], []
    for slot in range(first, stop):
        ancestors = branches.ancestors[slot - base]
        rows += [slot - start] * len(ancestors)
        columns += [base + a for a in ancestors]
    sees[rows, columns] = True
    return sees, at


def near(sees: Tensor, at: Tensor, window: int) -> Tensor:
    """What of `sees`[N, stop] lies within a window, by the positions `at`[stop] of all slots."""
    positions = at[at.shape[0] - sees.shape[0] :]
    return sees & (at[None, :] > positions[:, None] - window) if window else sees


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where something is seen, else minus infinity."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, float("-inf"))


def _rounded_up(width: int) -> int:
    """To whole alignments, in values: enough in any dtype."""
    return -(-width // ALIGNMENT) * ALIGNMENT


def grouped(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """What queries[N, H, d] read from keys and values [1, K, S, d] under mask[N H / K, S]: [N, H d].

    The heads that share a key stand as rows beside each other: no key is repeated.
    """
    num, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    if num == 1:
        asked = queries.view(1, kv_heads, group, head_dim)
        return functional.scaled_dot_product_attention(asked, keys, values, attn_mask=mask).reshape(1, -1)
    asked = queries.view(num, kv_heads, group, -1).transpose(0, 1).reshape(1, kv_heads, num * group, -1)
    found = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=mask)
    return found.view(kv_heads, num, group, -1).transpose(0, 1).reshape(num, -1)


class Alone:
    """Attention of one row: its keys are a slice."""

    def __init__(self, pool: Pool, row: int, start: int, num: int, tree: tuple[Tensor, Tensor] | None = None) -> None:
        own = pool.forward
        self.flat, self.split = pool.flat[row], pool.split[row]
        self.start, self.num, self.stop = start, num, start + num
        group = own.heads // own.kv_heads
        self.masks: dict[int, Tensor | None] = {}
        for window in set(own.windows):
            mask = None
            if tree is not None:
                mask = additive(sent(near(*tree, window), own.device), own.dtype)
                mask = mask.repeat_interleave(group, dim=0)
            elif num > 1 or (window and self.stop > window):
                mask = pool.band(num, start, window)
            self.masks[window] = mask
        self.windows = own.windows

    def attend(self, layer: int, queries: Tensor, fresh: Tensor) -> Tensor:
        self.flat[layer].narrow(0, self.start, self.num).copy_(fresh)
        keys, values = self.split[layer]
        mask = self.masks[self.windows[layer]]
        return grouped(queries, keys.narrow(2, 0, self.stop), values.narrow(2, 0, self.stop), mask)


class _Together:
    """Several rows side by side. Only attention pads them, to the longest; everything else sees the tokens alone.

    Shapes: R rows that are fed, N tokens of the longest, T tokens of all.
    """

    def __init__(self, pool: Pool, feeds: Sequence[tuple[int, Feed]]) -> None:
        own, self.pool = pool.forward, pool
        place = own.device
        used = [row for row, _ in feeds]
        starts = [pool.lengths[row] for row in used]
        sizes = [feed.tokens.shape[0] for _, feed in feeds]
        self.count, self.num = len(used), max(sizes)
        self.dense = min(sizes) == self.num
        self.stop = max(start + size for start, size in zip(starts, sizes, strict=True))
        pool.reach(self.stop)
        fed: list[int] = []  # where the tokens stand in the padded rows
        wanted: list[int] = []
        for i, (_, feed) in enumerate(feeds):
            fed += range(i * self.num, i * self.num + sizes[i])
            wanted += range(len(fed) - feed.rows, len(fed))
        self.fed, self.wanted = integers(fed, place), integers(wanted, place)
        self.tokens = torch.cat([feed.tokens for _, feed in feeds])
        # Rows beside each other are read where they are; others are brought together.
        beside = used == list(range(used[0], used[0] + self.count))
        self.beside = slice(used[0], used[0] + self.count) if beside else None
        self.used = integers(used, place)
        slots = integers(starts, place)[:, None] + torch.arange(self.num, device=place)
        self.rows, self.slots = self.used[self.fed // self.num], slots.view(-1)[self.fed]
        column = torch.arange(self.stop, device=place)
        positions, sees = slots.clone(), column <= slots[:, :, None]
        trees = any(feed.branches for _, feed in feeds)
        at = column.expand(self.count, self.stop).clone() if trees else None
        for i, (_, feed) in enumerate(feeds):
            if feed.branches is None:
                continue
            assert at is not None
            start, size = starts[i], sizes[i]
            own_sees, own_at = visible(start, size, feed.branches)
            sees[i, :size] = False
            sees[i, :size, : start + size] = sent(own_sees, place)
            at[i, : start + size] = sent(own_at, place)
            positions[i, :size] = at[i, start : start + size]
        self.group, self.kv_heads = own.heads // own.kv_heads, own.kv_heads
        self.windows = own.windows
        self.masks = {}
        for window in set(own.windows):
            seen = sees
            if window:
                # What pads a row may see nothing in its window: it reads its own slot, and nobody reads it.
                seen = sees & ((column if at is None else at[:, None, :]) > positions[:, :, None] - window)
                seen |= ~seen.any(2, keepdim=True)
            mask = additive(seen, own.dtype)[:, None]
            self.masks[window] = mask if self.group == 1 else mask.repeat_interleave(self.group, dim=2)
        cos, sin = own.angles(self.stop)
        flat = positions.view(-1)[self.fed]
        self.cos, self.sin = cos.index_select(0, flat), sin.index_select(0, flat)
        self.head_dim = own.head_dim

    def attend(self, layer: int, queries: Tensor, fresh: Tensor) -> Tensor:
        kv = self.pool.values[layer]
        kv[self.rows, self.slots] = fresh
        if self.beside is None:
            here = kv[:, : self.stop].index_select(0, self.used)
        else:
            here = kv[self.beside, : self.stop]
            if here.device.type == "cpu":
                # Read once in order, at the memory's full speed: what the heads then read in strides is in the cache.
                here.sum()
        both = here.view(self.count, self.stop, 2, self.kv_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(
            self._padded(queries), both[0], both[1], attn_mask=self.masks[self.windows[layer]]
        )
        found = found.view(self.count, self.kv_heads, self.num, self.group, self.head_dim).transpose(1, 2)
        found = found.reshape(self.count * self.num, -1)
        return found if self.dense else found.index_select(0, self.fed)

    def _padded(self, queries: Tensor) -> Tensor:
        """[T, H, d] -> [R, K, N group, d]: the heads that share a key stand as rows beside each other."""
        if not self.dense:
            whole = queries.new_zeros(self.count * self.num, *queries.shape[1:])
            whole[self.fed] = queries
            queries = whole
        asked = queries.view(self.count, self.num, self.kv_heads, self.group, self.head_dim).transpose(1, 2)
        return asked.reshape(self.count, self.kv_heads, self.num * self.group, self.head_dim)
