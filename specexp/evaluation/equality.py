"""Whether everyone decodes the same tokens: greedy outputs side by side, and how near a tie a divergence is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from specexp.engine import Engine
from specexp.evaluation.pair import Pair

NOISE = 1e-4  # of logits in float32; in a coarser dtype it grows with them
Outputs = Sequence[Sequence[int]]  # ids of each prompt


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an output first parts from the reference; a token is None where one of them has ended.

    `gap` is that between the target's logits of the two tokens, behind what both have emitted.
    """

    name: str
    prompt_id: str
    position: int
    token: int | None
    reference: int | None
    gap: float | None
    near_tie: bool


def differences(
    pair: Pair, dtype: torch.dtype, prompts: Mapping[str, Sequence[int]], outputs: Mapping[str, Outputs], reference: str
) -> list[Difference]:
    """One for each output that is not `reference`'s: `outputs` by name, each in the order of `prompts`."""
    engine = Engine(pair.models)
    found = []
    for name, theirs in outputs.items():
        for (prompt_id, ids), mine, want in zip(prompts.items(), theirs, outputs[reference], strict=True):
            if list(mine) != list(want):
                found.append(_difference(engine, dtype, name, prompt_id, ids, mine, want))
    return found


def _difference(
    engine: Engine,
    dtype: torch.dtype,
    name: str,
    prompt_id: str,
    ids: Sequence[int],
    mine: Sequence[int],
    want: Sequence[int],
) -> Difference:
    shorter = min(len(mine), len(want))
    at = next((i for i in range(shorter) if mine[i] != want[i]), shorter)
    token, other = (out[at] if at < len(out) else None for out in (mine, want))
    if token is None or other is None:
        return Difference(name, prompt_id, at, token, other, None, False)
    logits = engine.look("target", [*ids, *want[:at]], [])[0][-1]
    gap = abs(float(logits[token] - logits[other]))
    noise = max(NOISE, torch.finfo(dtype).eps * float(logits.abs().max()))
    # Both tokens must be near the best: two unlikely ones may be near each other too.
    best = float(logits.max() - min(logits[token], logits[other]))
    return Difference(name, prompt_id, at, token, other, gap, best <= noise)
