"""Matrices that training reads: in memory, or in an unnamed scratch file that is mapped, if they are too large for it.

scikit-learn's and PyTorch's own estimators take either one, and the same rows in the same order give the same judge.
What goes over all rows does so in batches of `ROWS`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

MOST_BYTES = 2 * 2**30  # of a matrix in memory
ROWS = 65_536

Array = np.ndarray[Any, Any]


def matrix(num_rows: int, width: int) -> Array:
    """Return an empty float32 matrix, in memory or in a scratch file of $TMPDIR that ends with it."""
    if not is_too_large(num_rows, width):
        return np.empty((num_rows, width), np.float32)
    with tempfile.TemporaryFile(prefix="specexp-features-") as file:
        return np.memmap(file, np.float32, "w+", shape=(num_rows, width))


def is_too_large(num_rows: int, width: int) -> bool:
    """True if a float32 matrix of this size is not held in memory."""
    return 4 * num_rows * width > MOST_BYTES


def is_mapped(x: Array) -> bool:
    """True if a matrix is in a scratch file."""
    return isinstance(x, np.memmap)


def batches(x: Array) -> Iterator[Array]:
    """Yield x[N, F] in batches of rows."""
    for start in range(0, len(x), ROWS):
        yield x[start : start + ROWS]


def scaler_of(x: Array) -> StandardScaler:
    """Fit scikit-learn's scaler, batch by batch."""
    scaler = StandardScaler()
    for batch in batches(x):
        scaler.partial_fit(batch)
    return scaler


def standardised(scaler: StandardScaler, x: Array) -> Array:
    """Return the standardised features."""
    result, done = matrix(*x.shape), 0
    for batch in batches(x):
        result[done : done + len(batch)] = scaler.transform(batch)
        done += len(batch)
    return result


def by_batch(function: Callable[[Array], Array], x: Array) -> Array:
    """Return function(x), which has one number for each row, batch by batch."""
    if len(x) <= ROWS and not is_mapped(x):
        return np.asarray(function(x))
    return np.concatenate([np.asarray(function(np.asarray(batch))) for batch in batches(x)])
