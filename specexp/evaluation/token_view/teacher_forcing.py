"""Scores the tokens of a finished output with target and draft: one teacher-forced pass each, without a run's cache.

Shapes: R rows scored together, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from specexp.decoding.protocol import Role
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.lm.model import Array

ROWS = 64  # rows of the vocabulary's size that are in memory at a time


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One model's scores at one position: of the output's token, and of other requested tokens.

    `rank` is the token's rank among the model's likeliest, from 1; `first` is the likeliest token.
    """

    probability: float
    rank: int
    first: int
    first_probability: float
    others: Mapping[int, float]


def unit_temperature(warp: Warp) -> Warp:
    """Return the warp of the reported probabilities: the run's own if it samples, else temperature 1, since all greedy
    probabilities would be 0 or 1."""
    return Warp(1.0) if warp.greedy else warp


def teacher_forced_probs(
    engine: Engine,
    role: Role,
    context: int,
    warp: Warp,
    prompt: Sequence[int],
    tokens: Sequence[int],
    others: Mapping[int, Sequence[int]],
) -> list[TokenScore | None]:
    """Score each of `tokens` given the prompt and the tokens before it; None beyond the model's context.

    `others[i]` are further tokens to score at position i. The engine must reuse its caches.
    """
    # The row that predicts tokens[i] exists once the prompt and i tokens were fed.
    limit = max(0, min(len(tokens), context - len(prompt) + 1))
    result: list[TokenScore | None] = []
    for start in range(0, limit, ROWS):
        here = tokens[start : min(start + ROWS, limit)]
        logits = engine.score(role, [*prompt, *tokens[:start]], here[:-1])[0]
        asked = [list(others.get(start + i, ())) for i in range(len(here))]
        result += _read(logits, warp, here, asked)
    return result + [None] * (len(tokens) - limit)


def _read(logits: Array, warp: Warp, tokens: Sequence[int], others: Sequence[Sequence[int]]) -> list[TokenScore]:
    """Score tokens[R] by logits[R, V]."""
    xp = array_namespace(logits)
    where = device(logits)
    logits = xp.astype(logits, xp.float32)
    p = warp(logits)
    columns = xp.asarray(list(tokens), dtype=xp.int64, device=where)[:, None]
    ahead = xp.sum(xp.astype(logits > xp.take_along_axis(logits, columns, axis=-1), xp.int64), axis=-1)
    probabilities = xp.take_along_axis(p, columns, axis=-1)[:, 0]
    first = xp.argmax(logits, axis=-1)
    best = xp.take_along_axis(p, first[:, None], axis=-1)[:, 0]
    flat = [row * logits.shape[-1] + token for row, more in enumerate(others) for token in more]
    values: list[float] = []
    if flat:
        values = xp.take(xp.reshape(p, (-1,)), xp.asarray(flat, dtype=xp.int64, device=where), axis=0).tolist()
    asked = iter(values)
    rows: Any = zip(probabilities.tolist(), ahead.tolist(), first.tolist(), best.tolist(), others, strict=True)
    return [
        TokenScore(probability, rank + 1, top, largest, {token: next(asked) for token in more})
        for probability, rank, top, largest, more in rows
    ]
