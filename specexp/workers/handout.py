"""Which unit of work each worker does next: pure scheduling, without processes, clocks or messages.

Units are read from an iterator as workers need them. At most `window` of them are open at a time, which means read and
not yet returned by `finished`: a run of a million prompts never holds a million. Within the window the longest waiting
unit goes first. A worker holds a block of at most `block` units and does them in order; towards the end blocks shrink
to one unit, so that none waits for a busy worker while another is idle.

A worker that dies was at its oldest unit. That one is handed out again, before all others; after `most_deaths` deaths
it has failed, and the run goes on. The others of its block go back as they were. A unit of several prompts is split
after its first death, so that one prompt alone fails.

Results may come in any order; `finished` returns them in the order of the units.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MOST_DEATHS = 3
BLOCK = 2  # one being done, and one that has arrived
UNITS_OPEN = 16  # for each worker

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Place = tuple[int, ...]  # of a unit in the order of all; parts of a split unit have one more number


@dataclass(frozen=True, slots=True)
class UnitOutcome(Generic[Unit, Result]):
    """What became of a unit: its result, or, if `deaths` workers died at it, the reasons that they gave."""

    unit: Unit
    result: Result | None
    deaths: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return self.result is None


@dataclass(slots=True)
class _Entry(Generic[Unit, Result]):
    place: Place
    unit: Unit
    size: float
    deaths: list[str] = field(default_factory=list)
    outcome: UnitOutcome[Unit, Result] | None = None

    def __lt__(self, other: _Entry[Unit, Result]) -> bool:
        """True if this unit is handed out before another one that waits."""
        return self._urgency < other._urgency

    @property
    def _urgency(self) -> tuple[int, float, Place]:
        return -len(self.deaths), -self.size, self.place


class Handout(Generic[Unit, Result]):
    """Hands units out to workers, which are named by anything hashable.

    `size` estimates how long a unit takes, in any unit of time; equal sizes go in their order. `split` returns the
    parts of a unit, in order; a unit that cannot be split is its only part.
    """

    def __init__(
        self, units: Iterable[Unit], size: Callable[[Unit], float] = lambda unit: 0.0, block: int = BLOCK,
        window: int = 4 * UNITS_OPEN, split: Callable[[Unit], Sequence[Unit]] = lambda unit: (unit,),
        most_deaths: int = MOST_DEATHS,
    ) -> None:  # fmt: skip
        assert 1 <= block <= window, "a window that is smaller than a block"
        self._source, self._size, self._split = enumerate(units), size, split
        self._block, self._window, self._most_deaths = block, window, most_deaths
        self._exhausted = False
        self._open: list[_Entry[Unit, Result]] = []  # by place
        self._waiting: list[_Entry[Unit, Result]] = []  # a heap: nothing of an entry changes while it waits
        self._held: dict[Hashable, list[_Entry[Unit, Result]]] = {}  # by worker, in the order in which it does them

    @property
    def num_open(self) -> int:
        """Units that are read and not yet returned."""
        return len(self._open)

    @property
    def is_done(self) -> bool:
        """True if every unit was returned by `finished`."""
        self._fill()
        return self._exhausted and not self._open

    def held(self, worker: Hashable) -> int:
        """How many units a worker has."""
        return len(self._held.get(worker, ()))

    def is_wanted(self, num_workers: int) -> bool:
        """True if another worker than these would have something to do."""
        self._fill()
        return len(self._waiting) > max(0, num_workers - len(self._held))

    def next_for(self, worker: Hashable, num_workers: int = 1) -> Unit | None:
        """The next unit for one of `num_workers` workers; None if it has its block, or nothing waits."""
        self._fill()
        held = self.held(worker)
        # At the end of the run a worker gets its next unit when it has nothing else to do.
        most = 1 if self._exhausted and len(self._waiting) < num_workers * self._block else self._block
        if not self._waiting or held >= most:
            return None
        entry = heapq.heappop(self._waiting)
        self._held.setdefault(worker, []).append(entry)
        return entry.unit

    def done(self, worker: Hashable, result: Result) -> None:
        """Note the result of the oldest unit that a worker has."""
        entry = self._take(worker)
        entry.outcome = UnitOutcome(entry.unit, result, tuple(entry.deaths))

    def died(self, worker: Hashable, reason: str, blamed: bool = True) -> None:
        """Note that a worker died; its units go to others. Without `blamed`, the reason lies in none of them."""
        held = self._held.pop(worker, [])
        if held and blamed:
            oldest = held.pop(0)
            oldest.deaths.append(reason)
            if len(oldest.deaths) >= self._most_deaths:
                oldest.outcome = UnitOutcome(oldest.unit, None, tuple(oldest.deaths))
            elif len(parts := self._split(oldest.unit)) > 1:
                self._replace(oldest, parts)
            else:
                heapq.heappush(self._waiting, oldest)
        for entry in held:
            heapq.heappush(self._waiting, entry)

    def finished(self) -> Iterator[UnitOutcome[Unit, Result]]:
        """Yield what is complete up to the first unit that is not, in the order of the units; each is yielded once."""
        while self._open and (outcome := self._open[0].outcome) is not None:
            del self._open[0]
            yield outcome
            self._fill()

    def _take(self, worker: Hashable) -> _Entry[Unit, Result]:
        held = self._held[worker]
        entry = held.pop(0)
        if not held:
            del self._held[worker]
        return entry

    def _replace(self, entry: _Entry[Unit, Result], parts: Sequence[Unit]) -> None:
        """Put the parts of a unit in its place; the death of the whole does not count for any of them."""
        at = bisect_left(self._open, entry.place, key=lambda each: each.place)
        made: list[_Entry[Unit, Result]] = [
            _Entry((*entry.place, i), part, self._size(part)) for i, part in enumerate(parts)
        ]
        self._open[at : at + 1] = made
        for each in made:
            heapq.heappush(self._waiting, each)

    def _fill(self) -> None:
        """Read units until the window is full."""
        while not self._exhausted and len(self._open) < self._window:
            number, unit = next(self._source, (None, None))
            if number is None:
                self._exhausted = True
                return
            assert unit is not None
            entry: _Entry[Unit, Result] = _Entry((number,), unit, self._size(unit))
            self._open.append(entry)
            heapq.heappush(self._waiting, entry)
