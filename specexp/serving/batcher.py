"""Decodes the requests of several threads together: a waiting request joins the batch as soon as a row is free.

Answers do not depend on the other requests: the engine's batches emit what one prompt at a time emits. This module does
not know MLflow. A thread decodes while any request waits, and ends after the last one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from itertools import count

from specexp.engine import Engine, Generation, Request


class Batcher:
    """One engine for all threads. `make` builds it, and builds a new one after decoding raised an error."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None
        self._lock = threading.Lock()  # guards the two fields below
        self._waiting: deque[tuple[Request, Future[Generation]]] = deque()
        self._running = False

    def decode(self, requests: Sequence[Request]) -> list[Generation]:
        """Decode these requests, together with those of other threads; returns when all of these are done.

        Raises what the engine raised: then every request that was being decoded fails, and the waiting ones continue.
        """
        return [future.result() for future in self.begin(requests)]

    def begin(self, requests: Sequence[Request]) -> list[Future[Generation]]:
        """Have these requests decoded; returns at once."""
        jobs = [(request, Future[Generation]()) for request in requests]
        with self._lock:
            self._waiting += jobs
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="decoding", daemon=True).start()
        return [future for _, future in jobs]

    def _work(self) -> None:
        while True:
            begun: dict[int, Future[Generation]] = {}  # by place among the requests that the engine took
            try:
                self._engine = self._engine or self._make()
                for place, out in self._engine.generate_all(_Arrivals(self._next, begun)):
                    begun.pop(place).set_result(out)
            except BaseException as error:
                self._engine = None  # the contents of its caches are unknown now
                self._fail(list(begun.values()), error)
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return

    def _fail(self, begun: Sequence[Future[Generation]], error: BaseException) -> None:
        """Pass the error to all requests in progress; if there are none, to one that waits, so that the loop ends."""
        if not begun and (first := self._next()) is not None:
            begun = [first[1]]
        for future in begun:
            future.set_exception(error)

    def _next(self) -> tuple[Request, Future[Generation]] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None


class _Arrivals:
    """The waiting requests, as an engine takes them: the iterator is exhausted while none waits, but not for good."""

    def __init__(
        self,
        take: Callable[[], tuple[Request, Future[Generation]] | None],
        begun: MutableMapping[int, Future[Generation]],
    ) -> None:
        self._take, self._begun = take, begun
        self._places = count()

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        if (job := self._take()) is None:
            raise StopIteration
        self._begun[next(self._places)] = job[1]
        return job[0]
