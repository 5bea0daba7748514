"""Times a crew's units from outside: in the worker, around each unit, and in the driver, around each call of the pool.

The workers are started once. Crews of any size are then made of the first of them, so that a run of one worker and one
of two are done by the same processes. All clocks are this machine's monotonic one: workers must run on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specexp.errors import WorkerError
from specexp.workers.dispatch import (
    WAIT,
    Died,
    Event,
    Facts,
    Finished,
    LoadedWork,
    Started,
    WorkerJob,
    WorkerPool,
)
from specexp.workers.node_metrics import NodeRun

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class TimedResult:
    """A unit's result, when the worker began and ended it, and the CPU seconds that its process spent.

    `cpu_seconds_before` are those between the end of the unit before and this one's beginning; 0 for the first.
    """

    result: Any
    began: float
    ended: float
    cpu_seconds: float
    cpu_seconds_before: float


@dataclass(slots=True)
class TimedWork:
    """Loaded work whose results are timed."""

    work: LoadedWork
    clock: Clock = time.monotonic
    cpu_clock: Clock = time.process_time
    _spent: float | None = None  # CPU seconds of the process until the latest unit ended

    def facts(self) -> Facts:
        return self.work.facts()

    def do(self, unit: Any) -> TimedResult:
        began, spent = self.clock(), self.cpu_clock()
        before = 0.0 if self._spent is None else spent - self._spent
        result = self.work.do(unit)
        ended, self._spent = self.clock(), self.cpu_clock()
        return TimedResult(result, began, ended, self._spent - spent, before)


@dataclass(frozen=True, slots=True)
class TimedJob:
    """A job whose units are timed."""

    job: WorkerJob

    def load(self) -> TimedWork:
        return TimedWork(self.job.load())


@dataclass(frozen=True, slots=True)
class StartedWorkers:
    """Workers that have all loaded."""

    pool: WorkerPool
    facts: dict[int, Facts]
    load_seconds: list[float]  # of each, from when it was asked for


def start_all(pool: WorkerPool, number: int, clock: Clock = time.monotonic) -> StartedWorkers:
    """Start so many workers, and wait for all of them. Raises WorkerError if one dies."""
    begun = {pool.start(): clock() for _ in range(number)}
    facts: dict[int, Facts] = {}
    seconds: dict[int, float] = {}
    while len(facts) < number:
        for event in pool.events(WAIT):
            match event:
                case Started(worker, known):
                    facts[worker], seconds[worker] = known, clock() - begun[worker]
                case Died(_, reason):
                    raise WorkerError(f"a worker died while it loaded: {reason}")
                case Finished():
                    raise AssertionError("a result before any unit was submitted")
    return StartedWorkers(pool, facts, [seconds[worker] for worker in begun])


@dataclass(frozen=True, slots=True)
class SubmittedUnit:
    """A unit with its times, as they were read."""

    unit: Any
    worker: int
    submitted: float
    returned: float
    timed: TimedResult


@dataclass(slots=True)
class RecordingPool:
    """A pool of the first of these workers, which notes when each unit was submitted and returned.

    `driver_seconds` are those in which the driver does not wait: between two calls of `events`, and in each call from
    when the first of its results was ready in the worker. They contain waiting for a core, and a result's way.
    """

    workers: StartedWorkers
    clock: Clock = time.monotonic
    units: list[SubmittedUnit] = field(default_factory=list)
    driver_seconds: float = 0.0
    _started: list[int] = field(default_factory=list)
    _told: int = 0
    _held: dict[int, list[tuple[Any, float]]] = field(default_factory=dict)
    _left: float = 0.0  # when `events` returned

    def start(self) -> int:
        worker = list(self.workers.facts)[len(self._started)]
        self._started.append(worker)
        return worker

    def submit(self, worker: int, unit: Any) -> None:
        self._held.setdefault(worker, []).append((unit, self.clock()))
        self.workers.pool.submit(worker, unit)

    def events(self, seconds: float) -> Sequence[Event]:
        """Raises WorkerError if a worker dies: what is left of the run would be another one."""
        if self._told < len(self._started):
            started, self._told = self._started[self._told :], len(self._started)
            self._left = self.clock()
            return [Started(worker, self.workers.facts[worker]) for worker in started]
        entered = self.clock()
        self.driver_seconds += entered - self._left
        before = len(self.units)
        result = [self._noted(event) for event in self.workers.pool.events(seconds)]
        self._left = self.clock()
        if new := self.units[before:]:
            self.driver_seconds += self._left - max(entered, min(unit.timed.ended for unit in new))
        return result

    def close(self) -> None:
        """Count the driver's time after the last result, too: call it when everything is written."""
        self.driver_seconds += self.clock() - self._left

    def log_nodes(self, run: NodeRun) -> None:
        self.workers.pool.log_nodes(run)

    def _noted(self, event: Event) -> Event:
        match event:
            case Finished(worker, TimedResult() as timed):
                unit, submitted = self._held[worker].pop(0)
                self.units.append(SubmittedUnit(unit, worker, submitted, self.clock(), timed))
                return Finished(worker, timed.result)
            case Died(_, reason):
                raise WorkerError(f"a worker died, so that this run cannot be compared: {reason}; measure again.")
        raise AssertionError(f"an event that no running worker has: {event}")
