"""Drafts a whole chain on one row of a pool, step by step, with only the sampling between the forwards.

The engine does the same for any model and any number of rows. This loop covers the case that is timed: no step goes
through the engine, plans a feed or enters its own context. The loop is not recorded; `cuda_graphs.py` does that where
it is possible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import DRAFT, Rng
from specexp.lm.native.attention import SingleRowAttention
from specexp.lm.native.kv_cache import NativeSession
from specexp.lm.threads import Threads


@torch.inference_mode()
def draft_chain(session: NativeSession, tokens: Tensor, ask: Draft, length: int, rng: Rng, position: int) -> Drafted:
    """`Drafts.draft` after tokens[n]: `length` drafted tokens, the first sampled with the key `position`."""
    pool, forward, warp = session.pool, session.pool.forward, ask.warp
    rng = rng.of_round(position) if ask.by_round else rng
    steps = length + ask.feed_last_token
    caught_up: Tensor | None = None
    if tokens.shape[0] > 2:  # what others proposed: one forward, which is the first step
        caught_up = session.feed(tokens, 1, hidden=True)[1]
        assert caught_up is not None, "hidden states were asked for"
    elif tokens.shape[0] > 1:
        session.feed(tokens[:-1], rows=0)
        tokens = tokens[-1:]
    start = session.length - (caught_up is not None)
    pool.buffers.ensure_capacity(start + steps)
    angles = forward.angles(start + steps)
    drawn: list[Tensor] = []
    scored: list[Tensor] = []
    rows: list[Tensor] = []
    states: list[Tensor] = []
    with Threads(forward.threads[False]):
        for step in range(steps):
            at = start + step
            if step or caught_up is None:
                x = forward(tokens, angles.at(at, at + 1), SingleRowAttention(pool, session.row, at, 1))
            else:
                x = caught_up
            states.append(x)
            if step == length:  # this step only computes the hidden state of the last token
                break
            logits = pool.logits(x)
            scored.append(logits)
            if warp.greedy:
                tokens = warp.first(logits)
            else:
                rows.append(warp(logits))
                tokens = rng.pick(rows[-1][0], position + step, DRAFT)[None]
            drawn.append(tokens)
    pool.lengths[session.row] = start + steps
    hidden = torch.cat(states) if ask.hidden or ask.feed_last_token else None
    peaks = torch.cat(scored).amax(-1)
    return Drafted(torch.cat(drawn), None if warp.greedy else torch.cat(rows), hidden, peaks)
