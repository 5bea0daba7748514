"""Decodes the requests of several threads together: a waiting request joins the batch as soon as a row is free.

Answers do not depend on the other requests: the engine's batches emit what one prompt at a time emits. This module does
not know MLflow. A thread decodes while any request waits, and ends after the last one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

from specexp.engine import Engine, Generation, Request

Run = Callable[[Engine, Iterable[Any]], Iterator[tuple[int, Any]]]


def _decode(engine: Engine, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
    return engine.generate_all(requests)


class Batcher:
    """One engine for all threads. `make` builds it, and builds a new one after decoding raised an error.

    `run` is what the engine does with its jobs: it yields (place, result) as each ends, and asks for more jobs while
    rows are free. By default jobs are requests.
    """

    def __init__(self, make: Callable[[], Engine], run: Run = _decode) -> None:
        self._make, self._run = make, run
        self._engine: Engine | None = None
        self._lock = threading.Lock()  # guards the two fields below
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._running = False

    def decode(self, requests: Sequence[Request]) -> list[Generation]:
        """Decode these requests, together with those of other threads; returns when all of these are done.

        Raises what the engine raised: then every request that was being decoded fails, and the waiting ones continue.
        """
        return [future.result() for future in self.begin(requests)]

    def begin(self, requests: Sequence[Request]) -> list[Future[Generation]]:
        """Have these requests decoded; returns at once."""
        return self.begin_jobs(requests)

    def begin_jobs(self, given: Sequence[Any]) -> list[Future[Any]]:
        """Have these jobs run; returns at once. A future that is cancelled while it waits is not begun."""
        jobs = [(job, Future[Any]()) for job in given]
        with self._lock:
            self._waiting += jobs
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="decoding", daemon=True).start()
        return [future for _, future in jobs]

    def _work(self) -> None:
        while True:
            begun: dict[int, Future[Any]] = {}  # by place among the jobs that the engine took
            try:
                self._engine = self._engine or self._make()
                for place, out in self._run(self._engine, _Arrivals(self._next, begun)):
                    begun.pop(place).set_result(out)
            except BaseException as error:
                self._engine = None  # the contents of its caches are unknown now
                self._fail(list(begun.values()), error)
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return

    def _fail(self, begun: Sequence[Future[Any]], error: BaseException) -> None:
        """Pass the error to all requests in progress; if there are none, to one that waits, so that the loop ends."""
        if not begun and (first := self._next()) is not None:
            begun = [first[1]]
        for future in begun:
            future.set_exception(error)

    def _next(self) -> tuple[Any, Future[Any]] | None:
        with self._lock:
            while self._waiting:
                job = self._waiting.popleft()
                if job[1].set_running_or_notify_cancel():
                    return job
            return None


class _Arrivals:
    """The waiting jobs, as an engine takes them: the iterator is exhausted while none waits, but not for good."""

    def __init__(
        self,
        take: Callable[[], tuple[Any, Future[Any]] | None],
        begun: MutableMapping[int, Future[Any]],
    ) -> None:
        self._take, self._begun = take, begun
        self._places = count()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if (job := self._take()) is None:
            raise StopIteration
        self._begun[next(self._places)] = job[1]
        return job[0]
