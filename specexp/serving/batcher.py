"""Decodes what several threads ask for together: whoever waits joins the batch as soon as a row is free.

Answers do not depend on who else is served: the engine's batches give those of one prompt at a time. Nothing here knows
MLflow. A thread decodes while anything waits, and ends with the last of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from itertools import count

from specexp.engine import Engine, Generation, Request


class Batcher:
    """One engine for all threads. `make` makes it, and makes another one where decoding broke off."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None
        self._lock = threading.Lock()  # of what follows
        self._waiting: deque[tuple[Request, Future[Generation]]] = deque()
        self._running = False

    def decode(self, requests: Sequence[Request]) -> list[Generation]:
        """Decode these, together with whatever else is asked for; returns when all are done.

        Raises what the engine raised: then everything that was being decoded fails, and what waited goes on.
        """
        jobs = [(request, Future[Generation]()) for request in requests]
        with self._lock:
            self._waiting += jobs
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="decoding", daemon=True).start()
        return [future.result() for _, future in jobs]

    def _work(self) -> None:
        while True:
            begun: dict[int, Future[Generation]] = {}  # by place among those that the engine took
            try:
                self._engine = self._engine or self._make()
                for place, out in self._engine.generate_all(_Arrivals(self._next, begun)):
                    begun.pop(place).set_result(out)
            except BaseException as error:
                self._engine = None  # nobody knows what its caches hold
                self._fail(list(begun.values()), error)
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return

    def _fail(self, begun: Sequence[Future[Generation]], error: BaseException) -> None:
        """Hand the error to all that was being decoded; where nothing was, to one that waits, so that an end comes."""
        if not begun and (first := self._next()) is not None:
            begun = [first[1]]
        for future in begun:
            future.set_exception(error)

    def _next(self) -> tuple[Request, Future[Generation]] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None


class _Arrivals:
    """What waits, as an engine takes it: at an end when nothing does, and not for good."""

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
