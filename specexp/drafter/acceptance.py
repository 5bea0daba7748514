"""Acceptance by position, offline: what a head or a draft model would have accepted of the target's own outputs.

At depth i the draft has drafted i tokens of the output, all accepted. `greedy` is the share of places where its most
likely token is the target's; `overlap` is the mean of sum_x min(p, q) at temperature 1, the acceptance probability of
speculative sampling (2211.17192). A draft model's acceptance does not depend on the depth: it sees the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specexp.drafter.eagle3 import Eagle3Head
from specexp.drafter.target_outputs import TargetOutput
from specexp.drafter.target_states import TargetStates
from specexp.drafter.training import padded, reached
from specexp.lm.hf.hf_model import HFModel

TOGETHER = 32


@dataclass(frozen=True, slots=True)
class Acceptance:
    """By depth: shares in [0, 1], and the tokens per target call of chains of 1, 2, ... tokens that they predict."""

    greedy: tuple[float, ...]
    overlap: tuple[float, ...]
    num_places: int

    def tokens_per_call(self, greedy: bool = True) -> list[float]:
        """Expected tokens of a round by gamma 0, 1, 2, ...: 1 + a_0 + a_0 a_1 + ..., positions taken as independent."""
        result, reach = [1.0], 1.0
        for share in self.greedy if greedy else self.overlap:
            reach *= share
            result.append(result[-1] + reach)
        return result


@torch.no_grad()
def of_head(head: Eagle3Head, outputs: Sequence[TargetOutput], target: TargetStates, depth: int) -> Acceptance:
    """Acceptance of a head at depth 0 .. `depth` - 1."""
    sums = torch.zeros(3, depth)
    place = head.draft_ids
    for ids, counted, states, logits in _batches(outputs, target, depth):
        device = place.device
        made = head.outputs(ids[:, 1:].to(device), states[:, :-1].to(device), depth)
        p = logits[:, 1:].to(device).softmax(-1)
        for step in range(depth):
            at = counted[step].to(device)
            q = torch.zeros(int(at.sum()), p.shape[-1], device=device)
            q[:, place] = head.logits(made[step][at]).float().softmax(-1)
            _add(sums, step, p[at], q)
    return _shares(sums)


@torch.no_grad()
def of_draft(draft: HFModel, outputs: Sequence[TargetOutput], target: TargetStates, depth: int) -> Acceptance:
    """Acceptance of a draft model with the target's tokens, at the same places."""
    sums = torch.zeros(3, depth)
    for ids, counted, _, logits in _batches(outputs, target, depth):
        out = draft.module(input_ids=ids.to(draft.device), use_cache=False).logits
        q = draft.as_logits(out.flatten(0, 1)).reshape(*out.shape[:2], -1)[:, 1:].softmax(-1)
        p = logits[:, 1:].softmax(-1)
        for step in range(depth):
            _add(sums, step, p[counted[step]], q[counted[step]].to(p.device))
    return _shares(sums)


def _batches(
    outputs: Sequence[TargetOutput], target: TargetStates, depth: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Ids [B, T], the rows that count [S, B, R], the target's states [B, T, 3 E] and logits [B, T, V]."""
    ordered = sorted(outputs, key=lambda out: len(out.ids))
    for first in range(0, len(ordered), TOGETHER):
        ids, begin, end = padded(ordered[first : first + TOGETHER])
        states, logits = target(ids)
        yield ids, reached(begin, end, ids.shape[1] - 1, depth), states, logits


def _add(sums: Tensor, step: int, p: Tensor, q: Tensor) -> None:
    sums[0, step] += float((p.argmax(-1) == q.argmax(-1)).sum())
    sums[1, step] += float(torch.minimum(p, q).sum())
    sums[2, step] += len(p)


def _shares(sums: Tensor) -> Acceptance:
    greedy, overlap = (sums[:2] / sums[2].clamp(min=1)).tolist()
    return Acceptance(tuple(greedy), tuple(overlap), int(sums[2, 0]))
