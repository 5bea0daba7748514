"""What large runs need of the driver and of memory, measured here on the code that they run: what breaks first.

The driver's loop is timed without processes, in CPU seconds: `Crew` with workers that return at once. Memory is what
Python's objects take, by tracemalloc.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
import tracemalloc
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from specexp.errors import TaskError
from specexp.judge.labels import Label
from specexp.scale.planning import aligned
from specexp.sequences.file_lines import FileLines
from specexp.sequences.token_ids import TokenIds
from specexp.workers.dispatch import Crew, Event, Finished, Started
from specexp.workers.handout import UNITS_OPEN
from specexp.workers.node_metrics import NodeRun

LEAST_RESULTS = 2_000  # that the driver's loop is timed on; at least three a worker
SAMPLE = 2_000  # objects whose memory is measured
SAMPLE_OF_PLACES = 50_000  # prompts: so many that what is there once does not count
HEADS = ("workers", "driver a result", "results a second", "of the driver's time")


@dataclass(slots=True)
class InstantPool:
    """Workers that have done a unit as soon as they have it. One result is returned at a time."""

    _started: deque[int] = field(default_factory=deque)
    _done: deque[int] = field(default_factory=deque)
    _number: int = 0

    def start(self) -> int:
        self._started.append(self._number)
        self._number += 1
        return self._number - 1

    def submit(self, worker: int, unit: Any) -> None:
        self._done.append(worker)

    def events(self, seconds: float) -> Sequence[Event]:
        if self._started:
            result: list[Event] = [Started(worker, {}) for worker in self._started]
            self._started.clear()
            return result
        return [Finished(self._done.popleft(), 0)]

    def log_nodes(self, run: NodeRun) -> None:
        raise AssertionError("these workers are on no node")


def loop_seconds(num_workers: int, clock: Callable[[], float] = time.process_time) -> float:
    """Return what a result takes of the driver's loop, without what is done with it and without Ray."""
    number = max(LEAST_RESULTS, 3 * num_workers)
    crew = Crew(InstantPool(), num_workers)
    crew.first()
    rng = random.Random(0)
    sizes = [rng.random() for _ in range(number)]
    begun = clock()
    for _ in crew.do(range(number), sizes.__getitem__):
        pass
    return (clock() - begun) / number


def bytes_of(make: Callable[[int], Any], number: int = SAMPLE) -> float:
    """Return the memory of one of the objects that `make(number)` returns."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make(number)
        result = (tracemalloc.get_traced_memory()[0] - before) / number
        del made
    finally:
        tracemalloc.stop()
    return result


def prompts_of(number: int) -> Any:
    """Make prompts as every process has them: where their rows are in the file, and how many tokens each has.

    Rows are read and encoded when they are asked for. Those used last are kept, a constant that is left out here.
    """
    with tempfile.TemporaryFile() as file:
        lines, numbers = FileLines(cast(BinaryIO, file), "the rows", TaskError), array("I")
        for index in range(number):
            lines.add(index, b"")
            numbers.append(index + 1)
    return lines, numbers, TokenIds(lambda index: [1], number).lengths


def labels_of(number: int) -> list[Label]:
    """Make labels as the driver holds them when it joins the results of all prompts."""
    return [
        Label(f"{i}", i, 1_000 + i, 2_000 + i, f" t{i}", f" d{i}", None, f"{i}.5", f"{i}.25", "train")
        for i in range(number)
    ]


@dataclass(frozen=True, slots=True)
class LargeRun:
    """What a run is like, and what one machine has."""

    seconds: float  # a prompt takes a worker
    result_bytes: float  # of one prompt's records
    labels_per_prompt: float
    call_seconds: float  # of the driver for each result, besides its loop: Ray's calls, and writing
    memory: float  # bytes, of each machine


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """Something that grows. `breaks` says at which size it is too much; `at` is that number of workers or prompts."""

    what: str
    grows: str
    breaks: str
    at: float


def most_workers(loop: Callable[[int], float], run: LargeRun) -> int:
    """Return at how many workers the driver is busy all the time, by the loop's seconds at 256 and at 1,024."""
    few, many = loop(256), loop(1_024)
    slope = max(0.0, (many - few) / (1_024 - 256))
    fixed = max(0.0, few - 256 * slope) + run.call_seconds
    # workers * (fixed + slope * workers) = seconds of a prompt
    if slope == 0:
        return int(run.seconds / fixed)
    return int((-fixed + math.sqrt(fixed**2 + 4 * slope * run.seconds)) / (2 * slope))


def limits(run: LargeRun, loop: Callable[[int], float] = loop_seconds) -> list[SizeLimit]:
    """Return what is too much from some size on, by memory and by the driver's time."""
    prompt, label = bytes_of(prompts_of, SAMPLE_OF_PLACES), bytes_of(labels_of)
    window = UNITS_OPEN * run.result_bytes
    workers, labels = most_workers(loop, run), run.labels_per_prompt * label
    return [
        SizeLimit("the driver's time", "with workers, and with workers squared", f"{workers:,} workers", workers),
        SizeLimit(
            "prompts in each process", f"{prompt:,.0f} bytes a prompt", _prompts(run.memory / prompt),
            run.memory / prompt,
        ),
        SizeLimit(
            "labels of a set that is joined", f"{labels:,.0f} bytes a prompt", _prompts(run.memory / labels),
            run.memory / labels,
        ),
        SizeLimit(
            "results that wait for an earlier one", f"{window:,.0f} bytes a worker, at most",
            f"{run.memory / window:,.0f} workers", run.memory / window,
        ),
    ]  # fmt: skip


def _prompts(number: float) -> str:
    return f"{number:,.0f} prompts"


def lines(run: LargeRun, workers: Sequence[int], loop: Callable[[int], float] = loop_seconds) -> Iterator[str]:
    """Yield the driver's time for each number of workers, and what breaks where."""
    rows = []
    for number in workers:
        each = loop(number) + run.call_seconds
        busy = number * each / run.seconds
        rows.append((f"{number:,}", f"{1000 * each:.2f} ms", f"{1 / each:,.0f}", f"{busy:.1%}"))
    yield f"prompts of {run.seconds:g} s on a worker, and {1000 * run.call_seconds:g} ms for Ray and writing a result"
    yield from aligned([HEADS, *rows])
    yield ""
    yield f"what is too much, and where, with {run.memory / 2**30:g} GB of memory:"
    yield from aligned([
        ("what", "how it grows", "from"), *((each.what, each.grows, each.breaks) for each in limits(run, loop)),
    ])  # fmt: skip
