"""Chains drafted in one recording, of one row or several: forwards, warping, rng, and where each chain ends.

A chain of a fixed length is a straight sequence of steps. One that ends by itself, where no longer chain pays
(`draft_length.py`) or a token is too unlikely, decides after each token, by tensors alone, whether the next step runs:
the recording skips steps that no row needs, and nothing is read to the host until the number of drafted tokens is.
Where a device cannot skip, all steps run. What a row drafts after its end is padding.

Before its first token a chain takes tokens that the draft has not seen: n of them, and padding.

Shapes: R rows, N fed tokens of a row, padding included, G gamma, V vocabulary, D hidden size, B bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from specexp.decoding.draft_length import BINS, Stopping
from specexp.decoding.protocol import Draft
from specexp.decoding.rng import DRAFT, HashRng
from specexp.decoding.rules import UNIT_TEMPERATURE
from specexp.lm.native.draft_loop import probability
from specexp.lm.native.graph_capture import Function, Recording

When = Callable[[Tensor, Callable[[], None]], None]  # `Capture.when`


class ChainForward(Protocol):
    """A forward of one row or several, each from its own slot on; a row that is not used starts below 0."""

    def chain(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Final hidden states [R N, D] of tokens[R N], N of each row, from the slots start[R] on."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Logits [R, V] of hidden states [R, D]."""
        ...


def ends_early(ask: Draft) -> bool:
    """True if chains may end before `gamma` tokens because of what they draft."""
    return ask.costs is not None or ask.min_draft_probability > 0


def fixed_chain(forward: ChainForward, ask: Draft) -> Function:
    """tokens[R N], n[R], start[R], position[R] and two seeds[R] to tokens[R, G], q[R, G, V], hidden[R, G (+ 1), D],
    peaks[R, G]."""
    gamma, warp = ask.gamma, ask.warp
    keeps_q = ask.keep_q and warp.greedy

    def run(tokens: Tensor, num: Tensor, start: Tensor, position: Tensor, *seeds: Tensor) -> tuple[Tensor, ...]:
        rng, fed = _rng(ask, position, *seeds), tokens
        drawn: list[Tensor] = []
        peaks: list[Tensor] = []
        rows: list[Tensor] = []
        states: list[Tensor] = []
        for step in range(gamma + ask.feed_last_token):
            x = _last(forward.chain(fed, start), num)
            states.append(x)
            if step == gamma:  # this step only computes the hidden state of the last token
                break
            start = start + (1 if step else num)
            logits = forward.logits(x)
            peaks.append(logits.amax(-1))
            if keeps_q:
                rows.append(UNIT_TEMPERATURE(logits))
            if warp.greedy:
                fed = warp.first(logits)
            else:
                rows.append(warp(logits))
                fed = rng.pick_at(rows[-1], position + step, DRAFT)
            drawn.append(fed)
        return torch.stack(drawn, 1), torch.stack(rows or drawn, 1), torch.stack(states, 1), torch.stack(peaks, 1)

    return run


def ending_chain(forward: ChainForward, ask: Draft, when: When) -> Function:
    """As `fixed_chain`, with `numbers_of` [R, G + B] as one more input, and the probabilities[R, G] of the tokens and
    the number[R] of drafted tokens as two more outputs."""
    gamma, warp = ask.gamma, ask.warp
    keeps_q = ask.keep_q and warp.greedy

    def run(tokens: Tensor, num: Tensor, start: Tensor, position: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        *seeds, numbers = others
        least, acceptance = numbers[:, :gamma], numbers[:, gamma:]
        rng, count = _rng(ask, position, *seeds), num.shape[0]
        x = _last(forward.chain(tokens, start), num)
        logits = forward.logits(x)
        # By step, so that a step's values lie together.
        drawn = tokens.new_empty(gamma, count)
        q = logits.new_empty(gamma, count, logits.shape[1] if keeps_q or not warp.greedy else 1)
        peaks, chances = logits.new_empty(gamma, count), logits.new_empty(gamma, count)
        states = x.new_empty(gamma + 1, count, x.shape[1])
        survival, number = numbers.new_ones(count), torch.zeros_like(start)
        goes_on = start >= 0  # of a token that is drawn: it is one of the chain's
        runs = torch.ones_like(goes_on[0])

        def draw(step: int, x: Tensor, logits: Tensor) -> None:
            states[step].copy_(x)
            row = None if warp.greedy else warp(logits)
            token = warp.first(logits) if row is None else rng.pick_at(row, position + step, DRAFT)
            if keeps_q or row is not None:
                q[step].copy_(UNIT_TEMPERATURE(logits) if row is None else row)
            chance = probability(token, logits, row)
            drawn[step].copy_(token)
            peaks[step].copy_(logits.amax(-1))
            chances[step].copy_(chance)
            number.add_(goes_on)
            survival.mul_(acceptance.gather(1, (chance * BINS).long().clamp(0, BINS - 1)[:, None])[:, 0])
            following = torch.zeros_like(goes_on)
            if step + 1 < gamma:
                following = goes_on & (survival > least[:, step + 1]) & ~(chance.double() < ask.min_draft_probability)
            # The last token is fed for its hidden state: then one more step runs, whose token is not the chain's.
            runs.copy_((goes_on if ask.feed_last_token else following).any())
            goes_on.copy_(following)

        def follow(step: int) -> None:
            x = forward.chain(drawn[step - 1], start + num + (step - 1))
            if step == gamma:
                states[step].copy_(x)
            else:
                draw(step, x, forward.logits(x))

        draw(0, x, logits)
        for step in range(1, gamma + ask.feed_last_token):
            when(runs, lambda step=step: follow(step))  # type: ignore[misc]
        by_row = (part.transpose(0, 1) for part in (drawn, q, states, peaks, chances))
        return *by_row, number

    return run


def chain_recording(
    forward: ChainForward, ask: Draft, rows: int, size: int, zeros: Callable[..., Tensor], when: When
) -> Recording:
    """The recording of chains after `size` tokens of each of `rows` rows; `zeros` makes tensors of int64."""
    inputs = [zeros(rows * size), *(zeros(rows) for _ in range(5))]
    if not ends_early(ask):
        return Recording(fixed_chain(forward, ask), inputs)
    inputs.append(zeros(rows, ask.gamma + BINS, dtype=torch.float64))
    return Recording(ending_chain(forward, ask, when), inputs)


def recording_of(ask: Draft) -> tuple[object, ...]:
    """What recordings of chains differ in, apart from their sizes."""
    return (ask.gamma, ask.warp, ask.feed_last_token, ask.by_round, ask.costs is None, ask.min_draft_probability,
            ask.keep_q)  # fmt: skip


def numbers_of(ask: Draft, stopping: Stopping | None, length: int) -> list[float]:
    """Where a chain of at most `length` tokens ends: below which probability, by its length, and the acceptances."""
    least = [0.0] * length if stopping is None else list(stopping.least[:length])
    acceptance = [1.0] * BINS if stopping is None else stopping.acceptance
    return [*least, *[float("inf")] * (ask.gamma - len(least)), *acceptance]


def _last(x: Tensor, num: Tensor) -> Tensor:
    """The states [R, D] of the last of each row's tokens, of which num[R] are no padding: x[R N, D]."""
    rows = num.shape[0]
    if x.shape[0] == rows:
        return x
    first = torch.arange(rows, device=x.device) * (x.shape[0] // rows)
    return x.index_select(0, first + num - 1)


def _rng(ask: Draft, position: Tensor, *seeds: Tensor) -> HashRng:
    rng = HashRng((seeds[0][:, None], seeds[1][:, None]))
    return rng.of_round(position[:, None]) if ask.by_round else rng
