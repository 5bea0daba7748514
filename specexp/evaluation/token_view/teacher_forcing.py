"""What target and draft think of the tokens of a finished output: one teacher-forced pass each, no cache of any run.

Shapes: R rows looked at together, V vocabulary.
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

ROWS = 64  # of the vocabulary's size, held at a time


@dataclass(frozen=True, slots=True)
class Opinion:
    """One model's, at one position: of the token that stands there, and of others that were asked about.

    `rank` counts the token among the model's likeliest, from 1; `first` is the likeliest of all.
    """

    probability: float
    rank: int
    first: int
    first_probability: float
    others: Mapping[int, float]


def unit_temperature(warp: Warp) -> Warp:
    """The distribution that probabilities are told of: the run's own where it samples, temperature 1 where it is greedy
    and every probability would be 0 or 1."""
    return Warp(1.0) if warp.greedy else warp


def teacher_forced_probs(
    engine: Engine,
    role: Role,
    context: int,
    warp: Warp,
    prompt: Sequence[int],
    tokens: Sequence[int],
    others: Mapping[int, Sequence[int]],
) -> list[Opinion | None]:
    """Of each of `tokens` behind the prompt and those before it; None from where the model's context ends.

    `others[i]` are more tokens to be told the probability of at position i. The engine is one that reuses its caches.
    """
    # The row before tokens[i] is there once the prompt and i tokens were fed.
    room = max(0, min(len(tokens), context - len(prompt) + 1))
    found: list[Opinion | None] = []
    for start in range(0, room, ROWS):
        here = tokens[start : min(start + ROWS, room)]
        logits = engine.look(role, [*prompt, *tokens[:start]], here[:-1])[0]
        asked = [list(others.get(start + i, ())) for i in range(len(here))]
        found += _read(logits, warp, here, asked)
    return found + [None] * (len(tokens) - room)


def _read(logits: Array, warp: Warp, tokens: Sequence[int], others: Sequence[Sequence[int]]) -> list[Opinion]:
    """Of logits[R, V] and tokens[R]."""
    xp = array_namespace(logits)
    where = device(logits)
    logits = xp.astype(logits, xp.float32)
    p = warp(logits)
    columns = xp.asarray(list(tokens), dtype=xp.int64, device=where)[:, None]
    ahead = xp.sum(xp.astype(logits > xp.take_along_axis(logits, columns, axis=-1), xp.int64), axis=-1)
    mine = xp.take_along_axis(p, columns, axis=-1)[:, 0]
    first = xp.argmax(logits, axis=-1)
    best = xp.take_along_axis(p, first[:, None], axis=-1)[:, 0]
    flat = [row * logits.shape[-1] + token for row, more in enumerate(others) for token in more]
    values: list[float] = []
    if flat:
        values = xp.take(xp.reshape(p, (-1,)), xp.asarray(flat, dtype=xp.int64, device=where), axis=0).tolist()
    asked = iter(values)
    rows: Any = zip(mine.tolist(), ahead.tolist(), first.tolist(), best.tolist(), others, strict=True)
    return [
        Opinion(probability, rank + 1, top, largest, {token: next(asked) for token in more})
        for probability, rank, top, largest, more in rows
    ]
