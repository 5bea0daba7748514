"""Loops of load in virtual time: how many requests are in flight, which count, what failures and lateness do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from scipy.stats import kstest

from helpers.virtual_time import run
from specexp import config
from specexp.engines.responses import Busy
from specexp.engines.stream import Answer
from specexp.errors import EngineError
from specexp.load_testing.levels import Level, RequestCounts, arrivals, jobs, levels_of, size_of
from specexp.load_testing.loops import UNFINISHED, Segment, closed_loop, open_loop


class Server:
    """Answers with `tokens` after `seconds`, both by the request's number, and counts what is in flight."""

    def __init__(self, seconds: Callable[[int], float], tokens: int = 5, fails: Callable[[int], Any] = lambda _: None):
        self.seconds, self.tokens, self.fails = seconds, tokens, fails
        self.in_flight = self.most = 0
        self.sent: list[float] = []

    async def ask(self, number: int) -> Answer:
        self.sent.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if error := self.fails(number):
                raise error
            seconds = self.seconds(number)
            await asyncio.sleep(seconds)
        finally:
            self.in_flight -= 1
        return Answer(
            num_tokens=self.tokens, num_chunks=self.tokens, first_seconds=seconds / 5, last_seconds=seconds,
            seconds=seconds,
        )  # fmt: skip


def closed(server: Server, clients: int, size: RequestCounts, prompts: int = 3) -> Segment:
    return run(closed_loop(server.ask, clients, size, prompts))


@pytest.mark.parametrize("clients", [1, 3, 8])
def test_a_closed_loop_has_as_many_in_flight_as_clients_and_never_more(clients: int) -> None:
    server = Server(lambda number: 1 + number % 3)
    segment = closed(server, clients, RequestCounts(clients, 6 * clients, 1e3))
    assert server.most == segment.most_in_flight == clients
    assert server.in_flight == 0, "what was left is cancelled"
    assert len(segment.samples) == 6 * clients


def test_the_warmup_is_in_neither_the_count_nor_the_time() -> None:
    server = Server(lambda number: 100.0 if number < 4 else 2.0)
    segment = closed(server, 4, RequestCounts(4, 12, 1e3))
    assert [sample.seconds for sample in segment.samples] == [2.0] * 12
    assert segment.seconds == pytest.approx(3 * 2.0)
    assert segment.complete
    assert sum(sample.tokens for sample in segment.samples) / segment.seconds == pytest.approx(4 * 5 / 2)
    assert {sample.index for sample in segment.samples} == {0, 1, 2}
    assert segment.lag == pytest.approx(0, abs=1e-6)


def test_an_answer_that_was_sent_in_the_warmup_counts_when_it_ends_in_the_measurement() -> None:
    """With staggered answers the rate is right from the first window: as many end in it as begin."""
    server = Server(lambda number: 3.0 if number else 1.0)
    segment = closed(server, 3, RequestCounts(3, 30, 1e3))
    rate = len(segment.samples) / segment.seconds
    assert rate == pytest.approx(1.0, rel=0.1)


def test_a_failure_is_not_sent_again_and_its_client_pauses() -> None:
    server = Server(lambda _: 1.0, fails=lambda number: Busy("status 429", 0.5) if number == 2 else None)
    segment = closed(server, 1, RequestCounts(1, 4, 1e3))
    assert (len(segment.samples), segment.failures) == (4, ["status 429"])
    assert server.sent[:6] == pytest.approx([0, 1, 2, 2.5, 3.5, 4.5])
    assert segment.seconds == pytest.approx(4.5)
    longest = Server(lambda _: 1.0, fails=lambda number: Busy("status 429", 60.0) if number == 1 else None)
    assert closed(longest, 1, RequestCounts(1, 2, 1e3)).seconds == pytest.approx(3.0)


def test_a_server_that_fails_always_ends_the_loop() -> None:
    failing = Server(lambda _: 1.0, fails=lambda number: EngineError("gone") if number > 1 else None)
    segment = closed(failing, 2, RequestCounts(2, 6, 1e3))
    assert segment.failures == ["gone"] * 6
    assert len(segment.samples) <= 1, "what was sent in the warm-up"
    with pytest.raises(EngineError, match="gone"):
        closed(Server(lambda _: 1.0, fails=lambda _: EngineError("gone")), 2, RequestCounts(2, 6, 1e3))


def test_a_bug_in_a_request_is_no_failure_of_the_server() -> None:
    with pytest.raises(ZeroDivisionError):
        closed(Server(lambda _: 1.0, fails=lambda _: ZeroDivisionError()), 2, RequestCounts(2, 6, 1e3))


def test_time_is_bounded() -> None:
    segment = closed(Server(lambda _: 3.0), 2, RequestCounts(2, 1000, 10.0))
    assert not segment.complete
    assert (len(segment.samples), segment.seconds) == (6, pytest.approx(10.0))
    with pytest.raises(EngineError, match=UNFINISHED):
        closed(Server(lambda _: 30.0), 2, RequestCounts(2, 1000, 10.0))


def test_an_open_loop_sends_when_requests_arrive_whatever_has_ended() -> None:
    due = [1.0, 2.0, 2.5, 4.0]
    server = Server(lambda _: 10.0)
    segment = run(open_loop(server.ask, due, RequestCounts(1, 3, 100.0), 2))
    assert server.sent == pytest.approx(due)
    assert server.most == 4
    assert (len(segment.samples), segment.complete) == (3, True)
    assert segment.seconds == pytest.approx(14.0 - 2.0)


def test_what_does_not_end_in_time_has_failed_in_an_open_loop() -> None:
    server = Server(lambda number: 100.0 if number == 2 else 1.0)
    segment = run(open_loop(server.ask, [0.0, 1.0, 2.0], RequestCounts(1, 2, 10.0), 2))
    assert (len(segment.samples), segment.failures, segment.complete) == (1, [UNFINISHED], False)
    assert segment.seconds == pytest.approx(10.0)


def test_a_client_that_is_late_hides_no_latency() -> None:
    """Times are from when a request was due."""
    server = Server(lambda _: 1.0)

    async def work() -> Segment:
        loop = asyncio.get_running_loop()

        async def blocking(number: int) -> Answer:
            if number == 0:
                loop._virtual.now += 5.0  # type: ignore[attr-defined]  # the client computes for five seconds
            return await server.ask(number)

        return await open_loop(blocking, [1.0, 2.0], RequestCounts(0, 2, 100.0), 2)

    segment = run(work())
    by_index = {sample.index: sample for sample in segment.samples}
    assert by_index[1].seconds == pytest.approx(5.0)
    assert by_index[1].first == pytest.approx(4.2)


def test_a_client_that_computes_for_long_has_a_late_event_loop() -> None:
    server = Server(lambda _: 0.05)

    async def work() -> Segment:
        async def blocking(number: int) -> Answer:
            asyncio.get_running_loop()._virtual.now += 0.5  # type: ignore[attr-defined]
            return await server.ask(number)

        return await closed_loop(blocking, 1, RequestCounts(1, 10, 100.0), 2)

    assert run(work()).lag > 0.4


def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    """Gaps of a Poisson process are exponential: a Kolmogorov-Smirnov test at a fixed seed."""
    times = arrivals(4.0, 2000, seed=3, number=1)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert kstest(gaps, "expon", args=(0, 1 / 4.0)).pvalue > 0.05
    assert kstest(gaps, "expon", args=(0, 1 / 4.6)).pvalue < 0.001, "the test has the power to see another rate"
    assert times == arrivals(4.0, 2000, seed=3, number=1)
    assert times != arrivals(4.0, 2000, seed=3, number=2)
    assert times != arrivals(4.0, 2000, seed=4, number=1)


def test_levels_sizes_and_order() -> None:
    experiment = config.resolve("arith_quick")
    assert levels_of(experiment) == []
    level = Level("concurrency", 8)
    size = size_of(level, experiment)
    assert (size.warmup, size.counted) == (8, 32)
    assert size_of(Level("concurrency", 24), experiment).counted == 48
    assert size_of(Level("request_rate", 2.5), experiment) == RequestCounts(1, 32, 60.0)
    assert (level.label, Level("request_rate", 2.5).label, Level("request_rate", 2.5).step) == ("8", "2.5/s", 2500)
    order = [(job.level.value, job.method, job.round) for job in jobs([level, Level("concurrency", 9)], ["a", "b"], 2)]
    assert order == [
        (8, "a", 0), (8, "b", 0), (8, "b", 1), (8, "a", 1), (9, "b", 0), (9, "a", 0), (9, "a", 1), (9, "b", 1),
    ]  # fmt: skip
