"""Chains drafted in one recording: forwards, warping, rng, and where the chain ends.

A chain of a fixed length is a straight sequence of steps. One that ends by itself (`draft_length.py`) decides after
each token, by tensors alone, whether the next step runs: the recording skips the others, and nothing is read to the
host until the number of drafted tokens is. Where a device cannot skip, all steps run, and the extra ones are padding.

Before its first token a chain takes tokens that the draft has not seen: n of them, and padding.

Shapes: N fed tokens, padding included, G gamma, V vocabulary, D hidden size, B bins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specexp.decoding.draft_length import BINS, Stopping
from specexp.decoding.protocol import Draft
from specexp.decoding.rng import DRAFT, HashRng
from specexp.decoding.rules import UNIT_TEMPERATURE
from specexp.lm.native.bucketed_forward import BucketForward
from specexp.lm.native.draft_loop import probability
from specexp.lm.native.graph_capture import Function

When = Callable[[Tensor, Callable[[], None]], None]  # `Capture.when`


def fixed_chain(forward: BucketForward, ask: Draft) -> Function:
    """tokens[N], n[1], start[1], position[1] and two seeds[1] to tokens[G], q[G, V], hidden[G (+ 1), D], peaks[G]."""
    gamma, warp = ask.gamma, ask.warp
    keeps_q = ask.keep_q and warp.greedy

    def run(tokens: Tensor, num: Tensor, start: Tensor, position: Tensor, *seeds: Tensor) -> tuple[Tensor, ...]:
        rng, fed = _rng(ask, position, *seeds), tokens
        drawn: list[Tensor] = []
        scored: list[Tensor] = []
        rows: list[Tensor] = []
        states: list[Tensor] = []
        for step in range(gamma + ask.feed_last_token):
            x = forward.chain(fed, start)
            x = x if x.shape[0] == 1 else x.index_select(0, num - 1)
            states.append(x)
            if step == gamma:  # this step only computes the hidden state of the last token
                break
            start = start + (1 if step else num)
            logits = forward.logits(x)
            scored.append(logits)
            if warp.greedy:
                fed = warp.first(logits)
            else:
                rows.append(warp(logits))
                fed = rng.pick_at(rows[-1], position + step, DRAFT)
            drawn.append(fed)
        q = torch.cat(rows or drawn) if not keeps_q else UNIT_TEMPERATURE(torch.cat(scored))
        return torch.cat(drawn), q, torch.cat(states), torch.cat(scored).amax(-1)

    return run


def ending_chain(forward: BucketForward, ask: Draft, when: When) -> Function:
    """As `fixed_chain`, with `numbers_of` as one more input, and the probabilities[G] of the tokens and the number[1]
    of drafted tokens as two more outputs."""
    gamma, warp = ask.gamma, ask.warp
    keeps_q = ask.keep_q and warp.greedy

    def run(tokens: Tensor, num: Tensor, start: Tensor, position: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        *seeds, numbers = others
        least, acceptance = numbers[:gamma], numbers[gamma:]
        rng = _rng(ask, position, *seeds)
        x = forward.chain(tokens, start)
        x = x if x.shape[0] == 1 else x.index_select(0, num - 1)
        logits = forward.logits(x)
        drawn = tokens.new_empty(gamma)
        q = logits.new_empty(gamma, logits.shape[1] if keeps_q or not warp.greedy else 1)
        peaks, chances = logits.new_empty(gamma), logits.new_empty(gamma)
        states = x.new_empty(gamma + 1, x.shape[1])
        survival, number = numbers.new_ones(1), start.new_zeros(1)
        goes_on = torch.ones_like(start, dtype=torch.bool)[0]  # of a token that is drawn: it is one of the chain's
        runs = torch.ones_like(goes_on)

        def draw(step: int, x: Tensor, logits: Tensor) -> None:
            states[step].copy_(x[0])
            row = None if warp.greedy else warp(logits)
            token = warp.first(logits) if row is None else rng.pick_at(row, position + step, DRAFT)
            if keeps_q or row is not None:
                q[step].copy_((UNIT_TEMPERATURE(logits) if row is None else row)[0])
            chance = probability(token, logits, row)
            drawn[step].copy_(token[0])
            peaks[step].copy_(logits.amax())
            chances[step].copy_(chance[0])
            number.add_(goes_on)
            survival.mul_(acceptance.index_select(0, (chance * BINS).long().clamp(0, BINS - 1)))
            following = goes_on & (survival > least[step + 1])[0] if step + 1 < gamma else torch.zeros_like(goes_on)
            # The last token is fed for its hidden state: then one more step runs, whose token is not the chain's.
            runs.copy_(goes_on if ask.feed_last_token else following)
            goes_on.copy_(following)

        def follow(step: int) -> None:
            x = forward.chain(drawn[step - 1 : step], start + num + (step - 1))
            if step == gamma:
                states[step].copy_(x[0])
            else:
                draw(step, x, forward.logits(x))

        draw(0, x, logits)
        for step in range(1, gamma + ask.feed_last_token):
            when(runs, lambda step=step: follow(step))  # type: ignore[misc]
        return drawn, q, states, peaks, chances, number

    return run


def numbers_of(stopping: Stopping, gamma: int) -> Tensor:
    """Where a chain ends, as a host tensor [G + B]: below which probability, by its length; and the acceptances."""
    least = [*stopping.least, *[float("inf")] * (gamma - len(stopping.least))]
    return torch.tensor([*least, *stopping.acceptance], dtype=torch.float64)


def _rng(ask: Draft, position: Tensor, *seeds: Tensor) -> HashRng:
    rng = HashRng((seeds[0], seeds[1]))
    return rng.of_round(position) if ask.by_round else rng
