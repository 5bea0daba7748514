"""Drafts a whole chain on one row of a pool, step by step, with only the sampling between the forwards.

The engine does the same for any model and any number of rows. This loop covers the case that is timed: no step goes
through the engine, plans a feed or enters its own context. The loop is not recorded; `cuda_graphs.py` does that where
it is possible. A chain that ends by itself is drafted here on a CPU, where reading a value waits for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import DRAFT, Rng
from specexp.lm.native.attention import SingleRowAttention
from specexp.lm.native.kv_cache import NativeSession
from specexp.lm.threads import Threads


@torch.inference_mode()
def draft_chain(
    session: NativeSession, tokens: Tensor, ask: Draft, length: int, rng: Rng, position: int,
    stopping: Stopping | None = None,
) -> Drafted:  # fmt: skip
    """`Drafts.draft` after tokens[n]: `length` drafted tokens, the first sampled with the key `position`."""
    pool, forward, warp = session.pool, session.pool.forward, ask.warp
    rng = rng.of_round(position) if ask.by_round else rng
    caught_up: Tensor | None = None
    if tokens.shape[0] > 2:  # what others proposed: one forward, which is the first step
        caught_up = session.feed(tokens, 1, hidden=True)[1]
        assert caught_up is not None, "hidden states were asked for"
    elif tokens.shape[0] > 1:
        session.feed(tokens[:-1], rows=0)
        tokens = tokens[-1:]
    start = session.length - (caught_up is not None)
    pool.buffers.ensure_capacity(start + length + ask.feed_last_token)
    angles = forward.angles(start + length + ask.feed_last_token)
    drawn: list[Tensor] = []
    scored: list[Tensor] = []
    rows: list[Tensor] = []
    states: list[Tensor] = []
    probabilities: list[Tensor] = []
    survival, step = 1.0, 0
    with Threads(forward.threads[False]):
        while step < length + ask.feed_last_token:
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
            step += 1
            if stopping is not None:
                probabilities.append(probability(tokens, logits, None if warp.greedy else rows[-1]))
                survival *= stopping.accepted(float(probabilities[-1]))
                if not stopping.goes_on(step, survival):
                    length = step
    pool.lengths[session.row] = start + length + ask.feed_last_token
    hidden = torch.cat(states) if ask.hidden or ask.feed_last_token else None
    peaks = torch.cat(scored).amax(-1)
    of_tokens = torch.cat(probabilities) if probabilities else None
    return Drafted(
        torch.cat(drawn), None if warp.greedy else torch.cat(rows), hidden, peaks, probability=of_tokens
    )  # fmt: skip


def probability(tokens: Tensor, logits: Tensor, q: Tensor | None) -> Tensor:
    """The probability of tokens[N] under the draft: in the rows q[N, V] they were drawn from, or of logits[N, V]."""
    if q is not None:
        return q.gather(-1, tokens[:, None])[:, 0]
    return (logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).exp()
