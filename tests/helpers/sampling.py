"""Sampling settings for tests of exactness."""

from __future__ import annotations

from typing import Any

EXACT = 1e-12
EOS = 0
GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLINGS: list[dict[str, Any]] = [
    GREEDY,
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 2},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 2, "top_p": 0.7},
]


def names(sampling: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in sampling.items())
