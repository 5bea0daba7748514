"""The workers' hand-out as the simulator sees it: which unit each worker does next, in O(log window) a unit.

The rules are those that real workers are given units by: a window of open units, within it units that a worker died at
first and then the longest, blocks that shrink at the end of a run, results returned in order. `handout` alone decides
which implementation is simulated.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

BLOCK = 2  # one being done, and one that has arrived
UNITS_OPEN = 16  # for each worker


class HandOut(Protocol):
    """Hands units, which are numbered from 0, out to workers."""

    @property
    def is_done(self) -> bool: ...

    def next_for(self, worker: int, num_workers: int) -> int | None: ...

    def done(self, worker: int) -> None: ...

    def died(self, worker: int) -> None: ...

    def finished(self) -> Iterator[int]: ...


def handout(sizes: Iterable[float], num_workers: int, block: int = BLOCK) -> HandOut:
    """Return the hand-out of units of these sizes, of which equal ones go in their order."""
    return HeapHandOut(sizes, block, max(block, UNITS_OPEN * num_workers))


class HeapHandOut:
    """The hand-out with heaps. A unit is never given up: deaths lie in no unit."""

    def __init__(self, sizes: Iterable[float], block: int, window: int) -> None:
        self._source, self._block, self._window = enumerate(sizes), block, window
        self._exhausted = False
        self._waiting: list[tuple[int, float, int]] = []  # deaths and size, both negative, and the unit
        self._open: dict[int, tuple[float, int]] = {}  # size and deaths of units that have no result
        self._held: dict[int, deque[int]] = {}
        self._results: set[int] = set()
        self._next = 0  # the first unit that was not returned
        self._num_read = 0

    @property
    def is_done(self) -> bool:
        self._fill()
        return self._exhausted and self._next == self._num_read

    def next_for(self, worker: int, num_workers: int) -> int | None:
        """Return the next unit for a worker; None if it has its block, or nothing waits."""
        self._fill()
        held = self._held.setdefault(worker, deque())
        most = 1 if self._exhausted and len(self._waiting) < num_workers * self._block else self._block
        if not self._waiting or len(held) >= most:
            return None
        unit = heapq.heappop(self._waiting)[2]
        held.append(unit)
        return unit

    def done(self, worker: int) -> None:
        """Note that a worker has done its oldest unit."""
        unit = self._held[worker].popleft()
        del self._open[unit]
        self._results.add(unit)

    def died(self, worker: int) -> None:
        """Note that a worker died: its units go to others, first the one that it was at."""
        for place, unit in enumerate(self._held.pop(worker, ())):
            size, deaths = self._open[unit]
            self._open[unit] = size, deaths + (place == 0)
            heapq.heappush(self._waiting, (-self._open[unit][1], -size, unit))

    def finished(self) -> Iterator[int]:
        """Yield the units that are complete up to the first that is not; each is yielded once."""
        while self._next in self._results:
            self._results.remove(self._next)
            self._next += 1
            yield self._next - 1
            self._fill()

    def _fill(self) -> None:
        while not self._exhausted and self._num_read - self._next < self._window:
            unit, size = next(self._source, (None, 0.0))
            if unit is None:
                self._exhausted = True
                return
            self._open[unit] = size, 0
            heapq.heappush(self._waiting, (0, -size, unit))
            self._num_read += 1
