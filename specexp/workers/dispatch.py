"""Drives a pool of workers: starts and replaces them, hands units out, and yields what becomes of each.

`WorkerPool` hides what a pool is made of (Ray's actors, or a simulation in a test), and `WorkerJob` what a unit is.
Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from specexp.errors import WorkerError
from specexp.workers.handout import BLOCK, UNITS_OPEN, Handout, UnitOutcome
from specexp.workers.node_metrics import NodeRun

MOST_FAILED_STARTS = 3  # in a row, before any worker could be started
WAIT = 1.0  # seconds, after which a pool may return without an event

Facts = Mapping[str, Any]
Unit = Any
Result = Any


class LoadedWork(Protocol):
    """What a worker does, with everything loaded."""

    def facts(self) -> Facts:
        """What is loaded, and where; must be picklable."""
        ...

    def do(self, unit: Unit) -> Result:
        """Do one unit. A SpecexpError ends the run, as it does in one process."""
        ...


class WorkerJob(Protocol):
    """What workers do; must be picklable."""

    def load(self) -> LoadedWork:
        """Load everything, in the worker. Raises SpecexpError."""
        ...


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has loaded its job."""

    worker: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker has done the oldest unit that it had."""

    worker: int
    result: Result


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone. `blamed` is False if that cannot be due to what it was doing."""

    worker: int
    reason: str
    blamed: bool = True


Event = Started | Finished | Died


class WorkerPool(Protocol):
    """Processes that do units, each in the order in which it gets them."""

    def start(self) -> int:
        """Begin to start one more worker; returns its name, which no other worker has."""
        ...

    def submit(self, worker: int, unit: Unit) -> None:
        """Send a unit to a worker that has started."""
        ...

    def events(self, seconds: float) -> Sequence[Event]:
        """Wait for events, at most so long. Raises what a worker raised while it loaded its job or did a unit."""
        ...

    def log_nodes(self, run: NodeRun) -> None:
        """Log the system metrics of the workers' nodes to this run."""
        ...


@dataclass(slots=True)
class Crew:
    """So many workers of one pool, over several sets of units.

    `on_change` is called with the facts of all workers whenever one has started.
    """

    pool: WorkerPool
    number: int
    on_change: Callable[[Mapping[int, Facts]], object] = lambda facts: None
    facts: dict[int, Facts] = field(default_factory=dict)  # of those that have started
    num_deaths: int = 0
    _starting: set[int] = field(default_factory=set)
    _failed_starts: int = 0

    def first(self) -> Facts:
        """Start the workers, and return the facts of the first that has started. Raises WorkerError."""
        idle: Handout[Unit, Result] = Handout(())
        while not self.facts:
            self._staff(self.number)
            self._take(idle, self.pool.events(WAIT))
        return next(iter(self.facts.values()))

    def do(
        self, units: Iterable[Unit], size: Callable[[Unit], float] = lambda unit: 0.0,
        split: Callable[[Unit], Sequence[Unit]] = lambda unit: (unit,),
        on_result: Callable[[int, Result], Result] = lambda worker, result: result,
        on_submit: Callable[[int, Unit], Unit] = lambda worker, unit: unit,
    ) -> Iterator[UnitOutcome[Unit, Result]]:  # fmt: skip
        """Yield the outcome of every unit, in their order.

        `on_result` is called as a result arrives, in any order, with the worker's name; its value replaces the result.
        So does `on_submit`'s replace the unit that the worker gets.
        """
        handout: Handout[Unit, Result] = Handout(units, size, BLOCK, UNITS_OPEN * self.number, split)
        while not handout.is_done:
            present = len(self.facts) + len(self._starting)
            self._staff(present + handout.is_wanted(present))
            for worker in self.facts:
                while (unit := handout.next_for(worker, self.number)) is not None:
                    self.pool.submit(worker, on_submit(worker, unit))
            self._take(handout, self.pool.events(WAIT), on_result)
            yield from handout.finished()

    def log_nodes(self, run: tuple[str, str] | None) -> None:
        """Log the system metrics of the workers' nodes to a run, (id, address of its store); None logs nothing."""
        if run is not None:
            self.pool.log_nodes(NodeRun(*run))

    def one(self, unit: Unit) -> Result:
        """Do one unit, and return its result. Raises WorkerError if workers die at it."""
        (outcome,) = self.do([unit])
        if outcome.failed:
            raise WorkerError(f"{len(outcome.deaths)} workers died at the same work: {outcome.deaths[-1]}")
        return outcome.result

    def _staff(self, wanted: int) -> None:
        """Start workers until there are as many as wanted, at most `number`."""
        while len(self.facts) + len(self._starting) < min(wanted, self.number):
            self._starting.add(self.pool.start())

    def _take(
        self, handout: Handout[Unit, Result], events: Sequence[Event],
        on_result: Callable[[int, Result], Result] = lambda worker, result: result,
    ) -> None:  # fmt: skip
        for event in events:
            match event:
                case Started(worker, facts):
                    self._starting.discard(worker)
                    self.facts[worker] = facts
                    self._failed_starts = 0
                    self.on_change(self.facts)
                case Finished(worker, result):
                    handout.done(worker, on_result(worker, result))
                case Died(worker, reason, blamed):
                    self._died(worker, reason)
                    handout.died(worker, reason, blamed)

    def _died(self, worker: int, reason: str) -> None:
        self.num_deaths += 1
        if worker in self._starting:
            self._starting.discard(worker)
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS and not self.facts:
                raise WorkerError(
                    f"{self._failed_starts} workers died one after another while they loaded the models: {reason}"
                )
        self.facts.pop(worker, None)
