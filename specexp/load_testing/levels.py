"""The levels of load, how many requests each takes, and the order in which methods are measured.

`concurrency` is a closed loop: so many clients, each of which sends its next request when its answer has ended.
`request_rate` is an open loop: requests arrive as a Poisson process, whether or not earlier ones have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from specexp.config import Experiment

Kind = Literal["concurrency", "request_rate"]
PER_CLIENT = 2  # counted requests of a closed loop, at least


@dataclass(frozen=True, slots=True)
class Level:
    """One level of load: clients at once, or requests a second."""

    kind: Kind
    value: float

    @property
    def label(self) -> str:
        """The level in a table."""
        return f"{self.value:g}" if self.kind == "concurrency" else f"{self.value:g}/s"

    @property
    def step(self) -> int:
        """MLflow's step, a whole number: clients, or requests in 1,000 seconds."""
        return round(self.value if self.kind == "concurrency" else 1000 * self.value)


@dataclass(frozen=True, slots=True)
class LoadJob:
    """One measurement: a method at a level, in one of the rounds."""

    level: Level
    method: str
    round: int


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """How many requests of a measurement precede the counted ones, how many count, and its longest time."""

    warmup: int
    counted: int
    seconds: float


def levels_of(experiment: Experiment) -> list[Level]:
    """Return the levels, closed loops first, each kind from low to high."""
    closed = [Level("concurrency", value) for value in sorted(experiment.concurrency)]
    return closed + [Level("request_rate", value) for value in sorted(experiment.request_rate)]


def size_of(level: Level, experiment: Experiment) -> RequestCounts:
    """Return how many requests a level takes.

    In a closed loop both numbers are multiples of the clients: where answers come in waves, part of a wave at the end
    of the measurement would count its time in full and its tokens in part.
    """
    warmup, counted = experiment.warmup_requests, experiment.num_requests
    if level.kind == "concurrency":
        clients = int(level.value)
        warmup = clients * max(1, -(-warmup // clients))
        counted = clients * max(PER_CLIENT, -(-counted // clients))
    return RequestCounts(warmup, counted, experiment.level_seconds)


def jobs(levels: Sequence[Level], methods: Sequence[str], rounds: int) -> Iterator[LoadJob]:
    """Yield all measurements: level by level, so that an interruption keeps whole levels. In each round the order of
    the methods rotates by one, so that none always follows the same other."""
    for place, level in enumerate(levels):
        for number in range(rounds):
            first = (place + number) % len(methods)
            for method in (*methods[first:], *methods[:first]):
                yield LoadJob(level, method, number)


def arrivals(rate: float, num: int, seed: int, number: int) -> list[float]:
    """Return `num` arrival times in seconds of a Poisson process with `rate` arrivals a second.

    They depend on seed and round alone, so that every method has the same ones.
    """
    rng = np.random.default_rng([seed, number, 0x10AD])
    return [float(each) for each in np.cumsum(rng.exponential(1 / rate, size=num))]
