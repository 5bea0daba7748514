"""The hand-out of units, with simulated workers that die at random."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from itertools import count

import pytest

from specexp.workers.handout import Handout, UnitOutcome

Parts = tuple[int, ...]


class SimulatedCluster:
    """Workers that take `seconds(unit)` for each unit and die at random, or at units that are `deadly`."""

    def __init__(
        self, handout: Handout[Parts, str], num_workers: int, seed: int, death: float = 0.0, deadly: Parts = ()
    ) -> None:
        self.handout, self.rng, self.death, self.deadly = handout, random.Random(seed), death, set(deadly)
        self.names, self.num_workers = count(), num_workers
        self.queues: dict[int, list[Parts]] = {}
        self.clock, self.events = 0.0, list[tuple[float, int]]()
        self.deaths, self.attempts = 0, list[Parts]()
        self.most_open, self.busy = 0, 0.0

    def seconds(self, unit: Parts) -> float:
        return sum(1 + each % 7 for each in unit)

    def give(self, worker: int) -> None:
        queue = self.queues[worker]
        while (unit := self.handout.next_for(worker, self.num_workers)) is not None:
            queue.append(unit)
            if len(queue) == 1:
                self.begin(worker)
        assert len(queue) == self.handout.held(worker) <= 2

    def begin(self, worker: int) -> None:
        heapq.heappush(self.events, (self.clock + self.seconds(self.queues[worker][0]), worker))

    def run(self) -> list[UnitOutcome[Parts, str]]:
        written = []
        while not self.handout.is_done:
            while len(self.queues) < self.num_workers:
                self.queues[next(self.names)] = []
            for worker in self.queues:
                self.give(worker)
            self.most_open = max(self.most_open, self.handout.num_open)
            self.clock, worker = heapq.heappop(self.events)
            unit = self.queues[worker][0]
            self.attempts.append(unit)
            self.busy += self.seconds(unit)
            if self.deadly.intersection(unit) or self.rng.random() < self.death:
                self.deaths += 1
                del self.queues[worker]
                self.handout.died(worker, f"worker {worker} died")
            else:
                self.queues[worker].pop(0)
                self.handout.done(worker, f"result {unit}")
                if self.queues[worker]:
                    self.begin(worker)
            written += list(self.handout.finished())
        return written


def units(number: int) -> Iterator[Parts]:
    return ((i,) for i in range(number))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_or_doubled_and_all_is_in_order_whoever_dies(num_workers: int, seed: int) -> None:
    handout: Handout[Parts, str] = Handout(units(200), lambda unit: unit[0] % 7, most_deaths=50)
    cluster = SimulatedCluster(handout, num_workers, seed, death=0.2)
    written = cluster.run()
    assert [each.unit for each in written] == list(units(200))
    assert [each.result for each in written] == [f"result {unit}" for unit in units(200)]
    assert cluster.deaths > 20
    assert len(cluster.attempts) == 200 + cluster.deaths


def test_a_unit_that_kills_three_workers_has_failed_and_the_run_goes_on() -> None:
    cluster = SimulatedCluster(Handout(units(40)), 3, 0, deadly=(7, 30))
    written = cluster.run()
    assert [each.unit for each in written] == list(units(40))
    failed = [each for each in written if each.failed]
    assert [each.unit for each in failed] == [(7,), (30,)]
    assert [len(each.deaths) for each in failed] == [3, 3]
    assert failed[0].deaths[0].endswith(" died")
    assert cluster.deaths == 6
    assert cluster.attempts.count((7,)) == 3


def test_a_unit_of_several_prompts_is_split_so_that_one_of_them_fails_alone() -> None:
    whole = [tuple(range(i, i + 4)) for i in range(0, 20, 4)]
    handout: Handout[Parts, str] = Handout(whole, split=lambda unit: [(each,) for each in unit])
    cluster = SimulatedCluster(handout, 2, 0, deadly=(9,))
    written = cluster.run()
    assert [each.unit for each in written] == [whole[0], whole[1], (8,), (9,), (10,), (11,), whole[3], whole[4]]
    assert [each.unit for each in written if each.failed] == [(9,)]
    assert cluster.deaths == 4  # of the whole, and three of the prompt


def test_a_death_that_no_unit_is_to_blame_for_does_not_count() -> None:
    handout: Handout[str, str] = Handout(["a"], most_deaths=1)
    assert handout.next_for("one") == "a"
    handout.died("one", "its node was given back", blamed=False)
    assert handout.next_for("two") == "a"
    handout.done("two", "done")
    assert [each.result for each in handout.finished()] == ["done"]
    assert handout.is_done


def test_only_the_oldest_unit_of_a_block_is_to_blame() -> None:
    handout: Handout[str, str] = Handout(iter("abcdefgh"), most_deaths=1)
    assert [handout.next_for("one"), handout.next_for("one"), handout.next_for("one")] == ["a", "b", None]
    handout.died("one", "killed")
    assert [(each.unit, each.failed) for each in handout.finished()] == [("a", True)]
    assert handout.next_for("two") == "b"


def test_units_are_read_only_as_they_are_needed() -> None:
    read = 0

    def endless() -> Iterator[Parts]:
        nonlocal read
        for read in range(1_000_000):
            yield (read,)

    handout: Handout[Parts, str] = Handout(endless(), window=10)
    workers = "abcdefghijkl"
    given = [handout.next_for(worker, len(workers)) for worker in workers * 2]
    assert sum(unit is not None for unit in given) == 10
    assert read == 9
    # The first unit is not done: what is done after it stays, and nothing more is read.
    for worker in workers[1:]:
        while handout.held(worker):
            handout.done(worker, "done")
    assert not list(handout.finished())
    assert handout.next_for("b", len(workers)) is None
    assert (read, handout.num_open) == (9, 10)
    handout.done("a", "done")
    assert len(list(handout.finished())) >= 9
    assert read > 9


@pytest.mark.parametrize("seed", range(5))
def test_a_window_bounds_what_is_open_with_deaths_too(seed: int) -> None:
    handout: Handout[Parts, str] = Handout(units(500), window=12, most_deaths=50)
    cluster = SimulatedCluster(handout, 4, seed, death=0.1)
    assert len(cluster.run()) == 500
    assert cluster.most_open <= 12


def test_the_longest_unit_of_the_window_goes_first_and_one_that_was_lost_before_it() -> None:
    sizes = {"a": 1.0, "b": 5.0, "c": 3.0, "d": 5.0}
    handout: Handout[str, str] = Handout("abcd", sizes.__getitem__, block=1)
    assert [handout.next_for(worker) for worker in range(3)] == ["b", "d", "c"]
    handout.died(2, "killed")
    assert [handout.next_for(worker) for worker in (3, 4)] == ["c", "a"]


def test_what_was_lost_goes_before_longer_ones_that_were_read_later() -> None:
    sizes = {"a": 1.0, "b": 1.0, "c": 9.0}
    handout: Handout[str, str] = Handout("abc", sizes.__getitem__, block=1, window=2)
    assert [handout.next_for(worker) for worker in range(2)] == ["a", "b"]
    handout.done(0, "A")
    assert [each.unit for each in handout.finished()] == ["a"]
    handout.died(1, "killed")
    assert [handout.next_for(worker) for worker in (2, 3)] == ["b", "c"]


def test_longest_first_ends_sooner_than_any_order() -> None:
    lengths = [1 + i % 5 for i in range(60)] + [40]

    def makespan(size: bool) -> float:
        handout: Handout[Parts, str] = Handout(
            units(len(lengths)), (lambda unit: lengths[unit[0]]) if size else lambda unit: 0.0, window=64
        )
        cluster = SimulatedCluster(handout, 4, 0)
        cluster.seconds = lambda unit: lengths[unit[0]]  # type: ignore[method-assign]
        cluster.run()
        return cluster.clock

    assert makespan(True) < 0.8 * makespan(False)


def test_at_the_end_no_unit_waits_for_a_busy_worker() -> None:
    handout: Handout[str, str] = Handout("abc")
    assert [handout.next_for("one", 3), handout.next_for("one", 3)] == ["a", None]
    assert [handout.next_for("two", 3), handout.next_for("three", 3)] == ["b", "c"]
    assert not handout.is_wanted(3)


def test_a_worker_is_wanted_while_units_wait_for_one() -> None:
    handout: Handout[str, str] = Handout("abcd")
    assert handout.is_wanted(3)
    assert not handout.is_wanted(4)
    handout.next_for("one", 4)
    assert handout.is_wanted(2)
    assert not handout.is_wanted(4)


def test_nothing_to_do_is_done_at_once() -> None:
    handout: Handout[str, str] = Handout([])
    assert handout.is_done
    assert handout.next_for("one") is None
