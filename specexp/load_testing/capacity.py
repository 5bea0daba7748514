"""The client's own capacity, measured against the null server, and when a measurement is bound by the client.

A request costs the client `per_request` seconds and each chunk of an answer `per_chunk`; both follow from two runs, one
with answers of one chunk and one with long answers: seconds per request = per_request + chunks * per_chunk. A
measurement with r requests and k chunks a second uses the share r * per_request + k * per_chunk of the client's time.
The null server runs on the same machine, so that the capacity is rather too low than too high.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from specexp.engines.async_client import AsyncEngineClient
from specexp.engines.body import Sampling, Wanted
from specexp.engines.endpoint import Endpoint
from specexp.engines.stream import Answer
from specexp.load_testing.levels import RequestCounts
from specexp.load_testing.loops import Segment, closed_loop
from specexp.load_testing.null_server import null_server

LONG = 64  # tokens of a long answer
REQUESTS = 100  # of one run, and at least two for each client
SECONDS = 5.0
BINDS = 0.5  # share of the client's time from which it may bind
MOST_LAG = 0.02  # seconds by which the event loop may be late
PROMPT = "a " * 200


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the client can do with so many requests in flight."""

    clients: int
    per_request: float  # seconds
    per_chunk: float

    @property
    def requests_per_second(self) -> float:
        """Of answers of one token."""
        return 1 / (self.per_request + self.per_chunk)

    @property
    def tokens_per_second(self) -> float:
        """Of answers of `LONG` tokens, each in a chunk of its own."""
        return LONG / (self.per_request + LONG * self.per_chunk)

    def share(self, segments: Sequence[Segment]) -> float:
        """Return the share of the client's time that these measurements took."""
        seconds = sum(each.seconds for each in segments)
        requests = sum(len(each.samples) + len(each.failures) for each in segments)
        chunks = sum(sample.chunks for each in segments for sample in each.samples)
        return (requests * self.per_request + chunks * self.per_chunk) / seconds


def capacity_of(clients: int, short: float, long: float) -> Capacity:
    """Return what follows from the seconds per request of answers of one chunk and of `LONG` chunks."""
    per_chunk = max(0.0, (long - short) / (LONG - 1))
    return Capacity(clients, max(1e-9, short - per_chunk), per_chunk)


def binds(share: float, lag: float) -> str:
    """Return why the client may have bound a measurement, or ""."""
    reasons = [f"it used {share:.0%} of its capacity"] if share > BINDS else []
    reasons += [f"its event loop was {1000 * lag:.0f} ms late"] if lag > MOST_LAG else []
    return " and ".join(reasons)


def measure(clients: Sequence[int]) -> list[Capacity]:
    """Measure the client with each number of requests in flight. Raises EngineError."""
    seconds: dict[tuple[int, int], float] = {}
    for tokens in (1, LONG):
        with null_server(tokens) as url:
            for each in clients:
                seconds[each, tokens] = asyncio.run(_seconds_per_request(url, each))
    return [capacity_of(each, seconds[each, 1], seconds[each, LONG]) for each in clients]


async def _seconds_per_request(url: str, clients: int) -> float:
    counted = max(REQUESTS, 2 * clients)
    async with AsyncEngineClient(Endpoint(url, "null"), asyncio.get_running_loop().time) as client:

        async def ask(number: int) -> Answer:
            return await client.ask(PROMPT, Sampling(LONG), Wanted(False, 0, True))

        segment = await closed_loop(ask, clients, RequestCounts(clients, counted, SECONDS), 1)
    return segment.seconds / max(1, len(segment.samples))
