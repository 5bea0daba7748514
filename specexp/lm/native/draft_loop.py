"""Drafts a whole chain on one row of a pool, step by step, with only the sampling between the forwards.

The engine does the same for any model and any number of rows. This loop covers the case that is timed: no step goes
through the engine, plans a feed or enters its own context. The loop is not recorded; `cuda_graphs.py` does that where
it is possible. A chain that ends by itself is drafted here on a CPU, where reading a value waits for nothing.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import DRAFT, Rng
from specexp.decoding.rules import UNIT_TEMPERATURE
from specexp.lm.blocks.rotary import Angles
from specexp.lm.native.kv_cache import Pool
from specexp.lm.threads import Threads


class ChainSession(Protocol):
    """A row of a pool whose chains are drafted here."""

    pool: Pool
    row: int

    def begin(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """Feed tokens[n], or all but the last one: the state [1, D] of the last one, None if it is still to be fed;
        and the last one."""
        ...

    def step(self, tokens: Tensor, at: int, angles: Angles) -> Tensor:
        """The state [1, D] after one token, in slot `at`."""
        ...


@torch.inference_mode()
def draft_chain(
    session: ChainSession, tokens: Tensor, ask: Draft, length: int, rng: Rng, position: int,
    stopping: Stopping | None = None,
) -> Drafted:  # fmt: skip
    """`Drafts.draft` after tokens[n]: `length` drafted tokens, the first sampled with the key `position`."""
    pool, forward, warp = session.pool, session.pool.forward, ask.warp
    rng = rng.of_round(position) if ask.by_round else rng
    caught_up, tokens = session.begin(tokens)
    start = pool.lengths[session.row] - (caught_up is not None)
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
            x = session.step(tokens, at, angles) if step or caught_up is None else caught_up
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
    q = torch.cat(rows) if rows else UNIT_TEMPERATURE(torch.cat(scored)) if ask.keep_q else None
    return Drafted(torch.cat(drawn), q, hidden, peaks, probability=of_tokens)


def probability(tokens: Tensor, logits: Tensor, q: Tensor | None) -> Tensor:
    """The probability of tokens[N] under the draft: in the rows q[N, V] they were drawn from, or of logits[N, V]."""
    if q is not None:
        return q.gather(-1, tokens[:, None])[:, 0]
    return (logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).exp()
