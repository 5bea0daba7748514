"""Weights of judges for any width."""

from __future__ import annotations

import numpy as np


def network_arrays(kind: str, size: int, seed: int = 0, spread: float = 1.5) -> dict[str, np.ndarray]:
    """A random judge that is sometimes sure of either answer: probabilities all over (0, 1)."""
    numbers = np.random.default_rng([seed, size])
    if kind == "trees":
        return tree_arrays(numbers, size, spread)
    width = 5 if kind == "mlp" else size
    arrays = {"mean": numbers.normal(size=size), "scale": numbers.uniform(0.5, 2, size)}
    if kind == "mlp":
        arrays |= {"weight_1": numbers.normal(size=(width, size)) / size**0.5, "bias_1": numbers.normal(size=width)}
    last = 2 if kind == "mlp" else 1
    arrays |= {f"weight_{last}": spread * numbers.normal(size=(1, width)), f"bias_{last}": numbers.normal(size=1)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def tree_arrays(numbers: np.random.Generator, size: int, spread: float) -> dict[str, np.ndarray]:
    """Six full trees of depth 2, and six of one node more: node i's children are 2 i + 1 and 2 i + 2."""
    num, width = 12, 7
    own = np.tile(np.arange(width), (num, 1))
    inner = own < np.where(np.arange(num) < 6, 3, 1)[:, None]
    return {
        "feature": np.where(inner, numbers.integers(size, size=(num, width)), 0).astype(np.int32),
        "bound": np.where(inner, numbers.normal(size=(num, width)), 0).astype(np.float32),
        "left": np.where(inner, 2 * own + 1, own).astype(np.int32),
        "right": np.where(inner, 2 * own + 2, own).astype(np.int32),
        "value": np.where(inner, 0, spread * numbers.normal(size=(num, width)) / 2).astype(np.float32),
        "bias": numbers.normal(size=1).astype(np.float32),
        "depth": np.array([2], np.int32),
        "size": np.array([size], np.int32),
    }
