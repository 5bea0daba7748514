"""The target's own distribution, the slow way, as the reference for exactness. It shares no code with decoding.

Every row comes from a forward over the whole text, without a cache, and is warped in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specexp.lm.model import Model

Array = np.ndarray[Any, Any]


def warp(logits: Sequence[float] | Array, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Probabilities[V] of one row of logits[V]: temperature, top-k, top-p; of equal logits the lower id ranks first."""
    row = np.asarray(logits, dtype=np.float64)
    order = np.argsort(-row, kind="stable")
    result = np.zeros(len(row))
    if temperature == 0:
        result[order[0]] = 1.0
        return result
    kept = order[:top_k] if top_k else order
    weights = np.exp((row[kept] - row.max()) / temperature)
    before = np.concatenate([[0.0], np.cumsum(weights / weights.sum())[:-1]])
    nucleus = weights * (before < top_p)
    result[kept] = nucleus / nucleus.sum()
    return result


def logits_behind(model: Model, ids: Sequence[int], rows: int) -> Array:
    """What follows each of the last `rows` of `ids`: logits[rows, V] in float64, from one forward over all of them."""
    logits, _ = model.session().feed(model.ids(ids), rows)
    return np.asarray(logits.tolist(), dtype=np.float64)


def sequence_distribution(
    model: Model, prompt: Sequence[int], length: int, eos: int | None, min_new_tokens: int = 0, **sampling: Any
) -> dict[tuple[int, ...], float]:
    """Probability of every output of `model` on `prompt`: up to `length` tokens, or to the EOS. For small vocabularies.

    The EOS has no probability before `min_new_tokens`.

    `sampling` are the arguments of `warp`.
    """
    result: dict[tuple[int, ...], float] = {}
    for output in itertools.product(range(model.vocab_size), repeat=length):
        if eos in output:
            output = output[: output.index(eos) + 1]
        if output in result:
            continue
        rows = logits_behind(model, [*prompt, *output[:-1]], len(output))
        if eos is not None:
            rows[:min_new_tokens, eos] = -np.inf
        prob = 1.0
        for row, token in zip(rows, output, strict=True):
            prob *= float(warp(row, **sampling)[token])
        result[output] = prob
    return {output: prob for output, prob in result.items() if prob > 0}


def gap(one: Mapping[tuple[int, ...], float], other: Mapping[tuple[int, ...], float]) -> float:
    """The largest difference of two distributions at any output."""
    return max(abs(one.get(k, 0.0) - other.get(k, 0.0)) for k in one.keys() | other.keys())
