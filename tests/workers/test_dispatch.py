"""A crew of workers over a simulated pool: starts, replacements, and what ends a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from helpers.simulated_pool import SimulatedPool, at_random
from specexp.errors import ModelError, WorkerError
from specexp.workers.dispatch import Crew, LoadedWork


@dataclass(frozen=True)
class Squares:
    """Squares numbers; at `refused` it raises."""

    refused: int = -1
    broken: bool = False

    def load(self) -> LoadedWork:
        if self.broken:
            raise ModelError("model 'x' cannot be loaded.")
        return self

    def facts(self) -> dict[str, Any]:
        return {"name": "squares"}

    def do(self, unit: int) -> int:
        if unit == self.refused:
            raise ModelError(f"no room for {unit}.")
        return unit**2


@pytest.mark.parametrize("number", [1, 2, 3, 9])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_results_are_those_of_one_process_in_order(number: int, share: float) -> None:
    pool = SimulatedPool(Squares(), dies=at_random(number, share, 30))
    crew = Crew(pool, number)
    outcomes = list(crew.do(range(200)))
    assert [each.unit for each in outcomes] == list(range(200))
    assert [each.result for each in outcomes if not each.failed] == [
        each.unit**2 for each in outcomes if not each.failed
    ]
    assert len([each for each in outcomes if each.failed]) <= pool.num_died // 3
    assert pool.num_died == crew.num_deaths
    assert (pool.num_died > 10) == (share > 0)
    assert len(crew.facts) <= number
    assert len(pool.done) + sum(each.failed for each in outcomes) == 200


def test_workers_are_kept_from_one_set_of_units_to_the_next() -> None:
    pool = SimulatedPool(Squares())
    crew = Crew(pool, 3)
    assert crew.first() == {"name": "squares"}
    assert [each.result for each in crew.do([1, 2])] == [1, 4]
    assert crew.one(7) == 49
    assert pool.num_started == 3


def test_results_arrive_in_any_order_with_their_workers() -> None:
    arrived = []
    pool = SimulatedPool(Squares(), seed=3)
    doubled = Crew(pool, 4).do(range(50), on_result=lambda worker, result: arrived.append((worker, result)) or -result)
    assert [each.result for each in doubled] == [-(i**2) for i in range(50)]
    assert [result for _, result in arrived] != sorted(result for _, result in arrived)
    assert len({worker for worker, _ in arrived}) == 4


def test_a_worker_may_get_another_unit_than_the_one_that_is_its_outcome() -> None:
    got: list[tuple[int, int]] = []

    def addressed(worker: int, unit: int) -> int:
        got.append((worker, unit))
        return unit + 100

    pool = SimulatedPool(Squares(), seed=3)
    outcomes = list(Crew(pool, 3).do(range(20), on_submit=addressed))
    assert [(each.unit, each.result) for each in outcomes] == [(i, (i + 100) ** 2) for i in range(20)]
    assert sorted(unit for _, unit in got) == list(range(20))
    assert {worker for worker, _ in got} == {0, 1, 2}


def test_a_unit_at_which_every_worker_dies_has_failed() -> None:
    crew = Crew(SimulatedPool(Squares(), dies=lambda worker, unit: unit == 5), 2)
    failed = [each for each in crew.do(range(10)) if each.failed]
    assert [(each.unit, len(each.deaths)) for each in failed] == [(5, 3)]
    with pytest.raises(WorkerError, match=r"^3 workers died at the same work: worker \d+ was killed$"):
        crew.one(5)


def test_workers_that_all_die_before_they_are_ready_end_the_run() -> None:
    crew = Crew(SimulatedPool(Squares(), dies=lambda worker, unit: unit is None), 2)
    with pytest.raises(WorkerError, match=r"^3 workers died one after another while they loaded the models: worker"):
        crew.first()


def test_one_start_that_fails_is_tried_again() -> None:
    pool = SimulatedPool(Squares(), dies=lambda worker, unit: unit is None and worker < 2)
    assert Crew(pool, 1).one(3) == 9
    assert pool.num_started == 3


@pytest.mark.parametrize(
    "job,words", [(Squares(broken=True), "cannot be loaded"), (Squares(refused=4), "no room for 4")]
)
def test_what_a_job_raises_ends_the_run_as_in_one_process(job: Squares, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        list(Crew(SimulatedPool(job), 2).do(range(10)))
