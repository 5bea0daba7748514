"""Replays how long prompts take over N workers: a simulation of events, in which nothing is decoded.

A worker loads the pair, and then does its units one after another. Each result goes to the driver, which takes them one
at a time, and answers with the worker's next unit; a worker goes on with the unit that it has meanwhile. A worker that
dies loses the unit that it was at, and its results that are under way; another one is started in its place. Who does
what is decided by the hand-out of real workers, and they are asked in the order of `dispatch.py`: in which they loaded.

What is not simulated: contention for a CPU, a network or a file system, and prompts that kill workers.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specexp.workers.handout import BLOCK, UNITS_OPEN, Handout

_LOADED, _FINISHED, _ASKED, _RETURNED, _DIED = range(5)  # kinds of events; the driver takes two of them
_NEVER = 1_000_000_000  # deaths at which a unit has failed: none is to blame for those that are simulated
_STEADY = (0.25, 0.75)  # part of the units whose rate is that of a long run

OnHanded = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What units are replayed on; seconds."""

    num_workers: int
    load_seconds: float = 60.0  # until a worker can begin
    driver_seconds: float = 0.001  # of the driver, for each result
    deaths_per_hour: float = 0.0  # of one worker
    restart_seconds: float = 30.0  # from a death until another worker begins to load
    slow_share: float = 0.0  # of the workers
    slow_factor: float = 2.0  # how much longer units take on those
    block: int = BLOCK
    longest_first: bool = True  # within the window; otherwise lengths are not known
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What a simulated run takes. `efficiency` is the work of the units / the time of all workers, loading included."""

    makespan: float
    work: float  # seconds that one worker at full speed takes, without loading
    num_workers: int
    num_deaths: int
    lost: float  # worker seconds spent on units that had to be done again
    rate: float  # units a second in the middle of the run

    @property
    def efficiency(self) -> float:
        return self.work / (self.num_workers * self.makespan)


@dataclass(slots=True)
class _Worker:
    factor: float
    place: int = 0  # among all that have loaded: the order in which they are given units
    life: int = 0  # how many died in this place
    held: deque[int] = field(default_factory=deque)
    began: float = -1.0  # when it began the first of them; -1 if it does nothing


class _Run:
    def __init__(self, seconds: Sequence[float], cluster: Cluster, sizes: Sequence[float], on_handed: OnHanded) -> None:
        self._seconds, self._cluster, self._on_handed = seconds, cluster, on_handed
        window = max(cluster.block, UNITS_OPEN * cluster.num_workers)
        self._handout: Handout[int, float] = Handout(
            range(len(seconds)), sizes.__getitem__, cluster.block, window, most_deaths=_NEVER
        )
        self._rng = random.Random(cluster.seed)
        num_slow = round(cluster.slow_share * cluster.num_workers)
        self._workers = [_Worker(cluster.slow_factor if i < num_slow else 1.0) for i in range(cluster.num_workers)]
        self._events: list[tuple[float, int, int, int, int]] = []  # time, order, kind, worker, its life
        self._num_events, self._num_loaded, self._driver_free = 0, 0, 0.0
        self._hungry: list[tuple[int, int]] = []  # (place, worker) of loaded workers that hold less than a block
        self.num_deaths, self.lost = 0, 0.0
        self.done_at: list[float] = []  # when the driver had each result

    def run(self) -> float:
        """Return the time at which the driver has the last result."""
        for worker in range(len(self._workers)):
            self._begin(0.0, worker)
        steps = {
            _LOADED: self._loaded, _FINISHED: self._finished, _ASKED: self._asked, _RETURNED: self._returned,
            _DIED: self._died,
        }  # fmt: skip
        now = 0.0
        while not self._handout.is_done:
            now, _, kind, worker, life = heapq.heappop(self._events)
            if life == self._workers[worker].life:
                steps[kind](now, worker)
        return now

    def _push(self, time: float, kind: int, worker: int) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (time, self._num_events, kind, worker, self._workers[worker].life))

    def _begin(self, now: float, worker: int) -> None:
        self._push(now + self._cluster.load_seconds, _LOADED, worker)
        if rate := self._cluster.deaths_per_hour / 3600:
            self._push(now + self._rng.expovariate(rate), _DIED, worker)

    def _tell_driver(self, now: float, kind: int, worker: int) -> None:
        """Queue a message; the driver takes one after another."""
        self._driver_free = max(now, self._driver_free) + self._cluster.driver_seconds
        self._push(self._driver_free, kind, worker)

    def _loaded(self, now: float, worker: int) -> None:
        self._tell_driver(now, _ASKED, worker)

    def _asked(self, now: float, worker: int) -> None:
        self._workers[worker].place, self._num_loaded = self._num_loaded, self._num_loaded + 1
        self._hungry.append((self._workers[worker].place, worker))
        self._give(now)

    def _finished(self, now: float, worker: int) -> None:
        each = self._workers[worker]
        each.held.popleft()
        each.began = -1.0
        self._start(now, worker)
        self._tell_driver(now, _RETURNED, worker)

    def _returned(self, now: float, worker: int) -> None:
        each = self._workers[worker]
        was_full = self._handout.held(worker) == self._cluster.block
        self._handout.done(worker, now)
        self.done_at.append(now)
        for _ in self._handout.finished():  # makes place in the window
            pass
        if was_full:
            insort(self._hungry, (each.place, worker))
        self._give(now)

    def _died(self, now: float, worker: int) -> None:
        each = self._workers[worker]
        self.num_deaths += 1
        if each.began >= 0:
            self.lost += now - each.began
        self._handout.died(worker, "simulated")
        self._hungry = [other for other in self._hungry if other[1] != worker]
        each.held.clear()
        each.life, each.began = each.life + 1, -1.0
        self._begin(now + self._cluster.restart_seconds, worker)
        self._give(now)

    def _give(self, now: float) -> None:
        """Fill the blocks of all workers, in their order, as far as there are units."""
        if not self._handout.is_wanted(0):
            return
        still = []
        for place, worker in self._hungry:
            while (unit := self._handout.next_for(worker, len(self._workers))) is not None:
                self._workers[worker].held.append(unit)
                self._on_handed(worker, unit)
            self._start(now, worker)
            if self._handout.held(worker) < self._cluster.block:
                still.append((place, worker))
        self._hungry = still

    def _start(self, now: float, worker: int) -> None:
        each = self._workers[worker]
        if each.held and each.began < 0:
            each.began = now
            self._push(now + each.factor * self._seconds[each.held[0]], _FINISHED, worker)


def simulate(
    seconds: Sequence[float], cluster: Cluster, sizes: Sequence[float] | None = None,
    on_handed: OnHanded = lambda worker, unit: None,
) -> SimulatedRun:  # fmt: skip
    """Replay units that take so long, in this order.

    `sizes` are what the hand-out knows of how long they take, if that is not `seconds` or, unless `longest_first`,
    nothing. `on_handed` is called with the worker and the number of each unit that is handed out.
    """
    if sizes is None:
        sizes = seconds if cluster.longest_first else [0.0] * len(seconds)
    run = _Run(seconds, cluster, sizes, on_handed)
    makespan = run.run()
    first, last = (run.done_at[math.floor(share * (len(seconds) - 1))] for share in _STEADY)
    rate = (_STEADY[1] - _STEADY[0]) * len(seconds) / (last - first) if last > first else len(seconds) / makespan
    return SimulatedRun(makespan, math.fsum(seconds), cluster.num_workers, run.num_deaths, run.lost, rate)


def prolonged(outcome: SimulatedRun, num_units: int, num_simulated: int) -> SimulatedRun:
    """Return the outcome of a longer run of such units, whose middle goes on at the rate of the simulated one's."""
    factor = num_units / num_simulated
    makespan = outcome.makespan + (num_units - num_simulated) / outcome.rate
    longer = makespan / outcome.makespan
    return SimulatedRun(makespan, factor * outcome.work, outcome.num_workers, round(longer * outcome.num_deaths),
                   longer * outcome.lost, outcome.rate)  # fmt: skip
