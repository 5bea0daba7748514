"""The loops that put load on an engine, and what they record of each request.

Closed loop: the measurement begins when the last warm-up answer has ended and ends with the last counted one. Whatever
ends in between counts, whenever it was sent; clients stay busy throughout, so the load is the level's all the time.
Open loop: the requests that arrive after the warm-up count, and the measurement ends when all of them have ended.

Nothing is sent again. A client of a closed loop whose request failed pauses, for as long as the server says but at most
`LONGEST_PAUSE` seconds; the pause is part of the measurement's time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from specexp.engines.responses import Busy
from specexp.engines.stream import Answer
from specexp.errors import EngineError
from specexp.load_testing.levels import RequestCounts

Ask = Callable[[int], Awaitable[Answer]]  # of the i-th request of a measurement
PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds after a failure
TICK = 0.01  # seconds between two looks at the event loop's lag
UNFINISHED = "did not end within level_seconds"


@dataclass(frozen=True, slots=True)
class Sample:
    """One counted answer; times in seconds. `per_token` is None of answers with one token."""

    index: int  # of the prompt
    tokens: int
    chunks: int
    first: float  # time to first token
    per_token: float | None  # after the first
    seconds: float


@dataclass(slots=True)
class Segment:
    """What one measurement recorded. `lag` is the 99th percentile of the event loop's delays, in seconds."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    lag: float = 0.0
    most_in_flight: int = 0
    complete: bool = True  # False if level_seconds ended it

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """Return a segment from its JSON."""
        return cls(**{**given, "samples": [Sample(**each) for each in given["samples"]]})


@dataclass(slots=True)
class _Counting:
    """Counts what ends in a measurement, once it has begun."""

    size: RequestCounts
    num_prompts: int
    on_end: Callable[[], object]
    segment: Segment = field(default_factory=Segment)
    in_flight: int = 0
    begun: float | None = None
    ended: float = 0.0

    async def send(self, ask: Ask, number: int) -> Answer | EngineError:
        """Return an answer with tokens, or why there is none."""
        self.in_flight += 1
        self.segment.most_in_flight = max(self.segment.most_in_flight, self.in_flight)
        try:
            answer = await ask(number)
        except EngineError as error:
            return error
        finally:
            self.in_flight -= 1
        if not answer.num_tokens or answer.first_seconds is None:
            return EngineError("an answer has no token.")
        return answer

    def count(self, number: int, result: Answer | EngineError, now: float, late: float = 0.0) -> None:
        """Count what has ended now; a request that was sent `late` has waited for so long already."""
        self.ended = now
        if isinstance(result, EngineError):
            self.segment.failures.append(str(result))
        else:
            assert result.num_tokens is not None
            assert result.first_seconds is not None
            first, seconds = result.first_seconds + late, result.seconds + late
            self.segment.samples.append(
                Sample(
                    number % self.num_prompts, result.num_tokens, result.num_chunks, first, result.seconds_per_token,
                    seconds,
                )
            )  # fmt: skip
        self.on_end()

    def is_whole(self) -> bool:
        """True if as many answers or as many failures have ended as count."""
        return max(len(self.segment.samples), len(self.segment.failures)) >= self.size.counted

    def result(self, lags: Sequence[float], end: float) -> Segment:
        """Return the finished segment, which took until `end`."""
        assert self.begun is not None
        self.segment.seconds = max(end - self.begun, 1e-9)
        self.segment.lag = float(np.percentile(lags, 99)) if lags else 0.0
        return self.segment


async def closed_loop(
    ask: Ask, clients: int, size: RequestCounts, num_prompts: int, on_end: Callable[[], object] = lambda: None
) -> Segment:
    """Keep `clients` requests in flight until `size.counted` answers, or as many failures, have ended.

    Raises EngineError if nothing is answered in the warm-up.
    """
    loop = asyncio.get_running_loop()
    counting, numbers, lags = _Counting(size, num_prompts, on_end), itertools.count(), list[float]()
    warm, whole = asyncio.Event(), asyncio.Event()
    warmed: list[Answer | EngineError] = []

    async def client() -> None:
        while True:
            number = next(numbers)
            result = await counting.send(ask, number)
            if counting.begun is None:
                warmed.append(result)
                if len(warmed) >= size.warmup:
                    counting.begun = loop.time()
                    warm.set()
            elif not counting.is_whole():
                counting.count(number, result, loop.time())
                if counting.is_whole():
                    whole.set()
            if isinstance(result, EngineError):
                await asyncio.sleep(_pause(result))

    tasks = [asyncio.create_task(each) for each in (*(client() for _ in range(clients)), _watch(lags))]
    try:
        await _until(warm.wait(), tasks, size.seconds)
        if not any(isinstance(each, Answer) for each in warmed):
            raise warmed[0] if warmed and isinstance(warmed[0], EngineError) else EngineError(UNFINISHED)
        counting.begun = loop.time() if counting.begun is None else counting.begun
        counting.segment.complete = await _until(whole.wait(), tasks, size.seconds)
        end = counting.ended if counting.segment.complete else loop.time()
        return counting.result(lags, end)
    finally:
        await _cancel(tasks)


async def open_loop(
    ask: Ask,
    arrivals: Sequence[float],
    size: RequestCounts,
    num_prompts: int,
    on_end: Callable[[], object] = lambda: None,
) -> Segment:
    """Send requests at `arrivals`, seconds from now, of which the first `size.warmup` do not count.

    Times are from the arrival that was due, so that a client that is late hides nothing. What has not ended
    `size.seconds` after the first counted arrival has failed.
    """
    loop = asyncio.get_running_loop()
    counting, lags = _Counting(size, num_prompts, on_end), list[float]()
    start, pending = loop.time(), dict[int, asyncio.Task[None]]()
    counting.begun = start + arrivals[size.warmup]

    async def one(number: int) -> None:
        late = loop.time() - (start + arrivals[number])
        result = await counting.send(ask, number)
        if number >= size.warmup:
            counting.count(number, result, loop.time(), late)

    async def dispatch() -> None:
        for number, due in enumerate(arrivals):
            await asyncio.sleep(start + due - loop.time())
            pending[number] = asyncio.create_task(one(number))
        # Not gathered: that would cancel what has not ended in time before it is counted.
        for task in (await asyncio.wait(pending.values()))[0]:
            task.result()

    watch = asyncio.create_task(_watch(lags))
    try:
        counting.segment.complete = await _until(dispatch(), [watch], arrivals[size.warmup] + size.seconds)
        if not counting.segment.complete:
            unfinished = [number for number, task in pending.items() if number >= size.warmup and not task.done()]
            for number in unfinished:
                counting.count(number, EngineError(UNFINISHED), loop.time())
        return counting.result(lags, counting.ended if counting.segment.complete else loop.time())
    finally:
        await _cancel([watch, *pending.values()])


def _pause(error: EngineError) -> float:
    return min(LONGEST_PAUSE, max(PAUSE, error.wait if isinstance(error, Busy) else 0.0))


async def _until(event: Coroutine[Any, Any, object], tasks: Sequence[asyncio.Task[None]], seconds: float) -> bool:
    """Wait for an event; False if it does not come in time. Raises what one of the tasks, which never end, raises."""
    waiting = asyncio.create_task(event)
    try:
        done, _ = await asyncio.wait({waiting, *tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return waiting in done
    finally:
        await _cancel([waiting])


async def _watch(lags: list[float]) -> None:
    """Record how much later than asked for the event loop comes back."""
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        await asyncio.sleep(TICK)
        lags.append(max(0.0, loop.time() - begun - TICK))


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
