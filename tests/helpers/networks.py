"""Weights of judges for any width."""

from __future__ import annotations

import numpy as np


def network_arrays(kind: str, size: int, seed: int = 0, spread: float = 1.5) -> dict[str, np.ndarray]:
    """A random judge that is sometimes sure of either answer: probabilities all over (0, 1)."""
    numbers = np.random.default_rng([seed, size])
    width = 5 if kind == "mlp" else size
    arrays = {"mean": numbers.normal(size=size), "scale": numbers.uniform(0.5, 2, size)}
    if kind == "mlp":
        arrays |= {"weight_1": numbers.normal(size=(width, size)) / size**0.5, "bias_1": numbers.normal(size=width)}
    last = 2 if kind == "mlp" else 1
    arrays |= {f"weight_{last}": spread * numbers.normal(size=(1, width)), f"bias_{last}": numbers.normal(size=1)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}
