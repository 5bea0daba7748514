"""How many threads a forward runs on, found by trying: for small models on a processor, fewer are often faster.

One number for a single row and one for several, since a product of one row is bound by memory and one of several by
arithmetic. Timing is the one thing that depends on it: no result is used but the fastest's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

ROWS = 8  # stands for "several"
REPEATS = 15
PATIENCE = 0.25  # seconds: a forward that takes longer has work for every thread there is


class Threads:
    """`count` threads inside `with`, 0 for as many as before, and as many as before behind it.

    A class, not a generator: it is entered at every step.
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
    """Threads for one row and for several, of 1, 2, 4, ... and `available`; `forward` runs on so many rows."""
    choices = sorted({available, *(1 << i for i in range(available.bit_length()) if 1 << i <= available)})

    def seconds(rows: int, count: int) -> float:
        with Threads(count):
            start = clock()
            forward(rows)
            return clock() - start

    if len(choices) == 1 or seconds(1, available) > PATIENCE:
        return available, available
    found: list[int] = []
    for rows in (1, ROWS):
        for count in choices:
            seconds(rows, count)  # warm
        # In turns: what disturbs one choice disturbs the others as well.
        turns = [[seconds(rows, count) for count in choices] for _ in range(REPEATS)]
        medians = [median(column) for column in zip(*turns, strict=True)]
        found.append(choices[medians.index(min(medians))])
    return found[0], found[1]
