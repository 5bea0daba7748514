"""A pool of workers in this process, which do real units one after another and die when a test says so."""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result

from specexp.workers import settings
from specexp.workers.dispatch import Crew, Died, Event, Finished, LoadedWork, Started, WorkerJob
from specexp.workers.node_metrics import NodeRun
from specexp.workers.settings import WorkerSettings


@dataclass
class SimulatedPool:
    """`dies(worker, unit)` says whether a worker dies at a unit, before or after it is done; `None` is its start.

    Everything that a worker gets or returns is pickled, as between processes.
    """

    job: WorkerJob
    seed: int = 0
    dies: Callable[[int, Any], bool] = lambda worker, unit: False
    blamed: bool = True
    num_started: int = 0
    num_died: int = 0
    closed: bool = False
    done: list[Any] = field(default_factory=list)
    logged: list[NodeRun] = field(default_factory=list)
    _queues: dict[int, deque[Any]] = field(default_factory=dict)
    _loaded: dict[int, LoadedWork | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def start(self) -> int:
        worker, self.num_started = self.num_started, self.num_started + 1
        self._queues[worker], self._loaded[worker] = deque(), None
        return worker

    def submit(self, worker: int, unit: Any) -> None:
        assert self._loaded[worker] is not None
        self._queues[worker].append(_copied(unit))

    def events(self, seconds: float) -> Sequence[Event]:
        """One event, of a worker that is chosen at random."""
        ready = [w for w, loaded in self._loaded.items() if loaded is None or self._queues[w]]
        assert ready, "nobody has anything to do"
        worker = self._rng.choice(ready)
        if (loaded := self._loaded[worker]) is None:
            if self.dies(worker, None):
                return [self._died(worker)]
            self._loaded[worker] = loaded = _copied(self.job).load()
            return [Started(worker, _copied(loaded.facts()))]
        unit = self._queues[worker][0]
        late = self._rng.random() < 0.5
        result = loaded.do(unit) if late else None
        if self.dies(worker, unit):
            return [self._died(worker)]
        self._queues[worker].popleft()
        self.done.append(unit)
        return [Finished(worker, _copied(result if late else loaded.do(unit)))]

    def log_nodes(self, run: NodeRun) -> None:
        self.logged.append(run)

    def _died(self, worker: int) -> Died:
        del self._queues[worker], self._loaded[worker]
        self.num_died += 1
        return Died(worker, f"worker {worker} was killed", self.blamed)


def _copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def at_random(seed: int, share: float, most: int = 1_000_000) -> Callable[[int, Any], bool]:
    """Workers that die at this share of units, at most so often."""
    rng, left = random.Random(seed), iter(range(most))

    def dies(worker: int, unit: Any) -> bool:
        return rng.random() < share and next(left, None) is not None

    return dies


@contextmanager
def opened(pools: list[SimulatedPool], **how: Any) -> Iterator[Callable[..., Any]]:
    """A replacement of `specexp.workers.crew.crew`, which appends the pools that it makes."""

    @contextmanager
    def crew(given: WorkerSettings, job: WorkerJob) -> Iterator[Crew]:
        pools.append(SimulatedPool(job, **how))
        yield Crew(pools[-1], given.number)
        pools[-1].closed = True

    yield crew


def simulated_command(
    monkeypatch: pytest.MonkeyPatch, driver: ModuleType, command: Callable[..., Result],
    pools: list[SimulatedPool] | None = None,
) -> Callable[..., tuple[Result, SimulatedPool]]:  # fmt: skip
    """A function that runs a command on `number` simulated workers, and returns their pool, too.

    `driver` is the module that imports `crew`; `pools` gets the pools that are made.
    """
    made = [] if pools is None else pools
    monkeypatch.setattr(settings, "is_installed", lambda name: True)  # Ray need not be installed

    def run(*arguments: str, number: int = 2, **how: Any) -> tuple[Result, SimulatedPool]:
        with opened(made, **how) as crew:
            monkeypatch.setattr(driver, "crew", crew)
            result = command(*arguments, "--workers", str(number))
        return result, made[-1]

    return run
