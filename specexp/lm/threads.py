"""Measures on how many threads a forward is fastest: small models on a CPU are often faster on fewer threads.

There is one number for a single row and one for several rows, since memory limits the product of one row and
arithmetic that of several. The choice affects only the time; the outputs of the timed forwards are not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

ROWS = 8  # measured as "several"
REPEATS = 15
PATIENCE = 0.25  # seconds: a forward that takes longer has enough work for all threads


class Threads:
    """Context manager that sets torch to `count` threads (0: no change) and restores the previous number on exit.

    A class and not a generator, which is slower: it is entered at every step.
    """

    __slots__ = ("_before", "_count")

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._count not in (0, self._before):
            torch.set_num_threads(self._count)

    def __exit__(self, *error: object) -> None:
        if self._count not in (0, self._before):
            torch.set_num_threads(self._before)


def fastest(
    forward: Callable[[int], object], available: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, int]:
    """Fastest thread counts for one row and for several, of 1, 2, 4, ... and `available`; times `forward(rows)`."""
    choices = sorted({available, *(1 << i for i in range(available.bit_length()) if 1 << i <= available)})

    def seconds(rows: int, count: int) -> float:
        with Threads(count):
            start = clock()
            forward(rows)
            return clock() - start

    if len(choices) == 1 or seconds(1, available) > PATIENCE:
        return available, available
    result: list[int] = []
    for rows in (1, ROWS):
        for count in choices:
            seconds(rows, count)  # warm
        # The choices take turns, so that noise from other processes affects all of them equally.
        turns = [[seconds(rows, count) for count in choices] for _ in range(REPEATS)]
        medians = [median(column) for column in zip(*turns, strict=True)]
        result.append(choices[medians.index(min(medians))])
    return result[0], result[1]
