"""Log-probabilities of tokens under the model that emits them, from its logits before any warping.

Temperature, top-k and top-p do not change them, as in vLLM's default, `raw_logprobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, to_device

_ROWS = 64  # rows of logits that are on the host at a time


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token's log-probability, and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, its log-probability), the likeliest first


def token_scores(logits: Any, tokens: Sequence[int], num_top: int) -> list[ScoredToken]:
    """Return the scores of tokens[N], token i from row i of logits[N, V]; more rows are not read."""
    result: list[ScoredToken] = []
    for start in range(0, len(tokens), _ROWS):
        part = tokens[start : start + _ROWS]
        result += map(_score, _log_softmax(logits[start : start + len(part)]), part, [num_top] * len(part))
    return result


def _log_softmax(logits: Any) -> np.ndarray:
    """logprobs[N, V] in double precision, on the host."""
    xp = array_namespace(logits)
    rows = np.asarray(to_device(xp.astype(logits, xp.float32), "cpu")).astype(np.float64)
    rows = rows - rows.max(axis=-1, keepdims=True)
    result: np.ndarray = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    return result


def _score(row: np.ndarray, token: int, num_top: int) -> ScoredToken:
    num_top = min(num_top, len(row))
    best = np.argpartition(-row, num_top - 1)[:num_top] if num_top else np.empty(0, dtype=np.int64)
    best = best[np.lexsort((best, -row[best]))]  # ties in the order of their ids
    top = tuple((int(each), float(row[each])) for each in best)
    return ScoredToken(token, float(row[token]), top)
