"""Simulated runs: schedules small enough to be written down, and what holds of every one."""

from __future__ import annotations

import heapq
import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from specexp.errors import ConfigError
from specexp.scale import planning
from specexp.scale.durations import of_answers, recorded
from specexp.scale.plan_command import command
from specexp.scale.simulation import Cluster, prolonged, simulate
from specexp.workers.dispatch import Crew, Finished, Started

IDEAL = Cluster(2, load_seconds=0.0, driver_seconds=0.0, block=1)


def gsm8k_like(number: int, seed: int = 0) -> list[float]:
    """Seconds whose mean and spread are those of GSM8K's answers (mean 270 characters, sd of the log 0.45)."""
    rng = random.Random(seed)
    return [2.0 * rng.lognormvariate(0, 0.45) for _ in range(number)]


def test_two_workers_by_hand() -> None:
    """Longest first, one does the 3 and the other the rest; in order, the 3 comes last and is waited for."""
    assert simulate([1.0, 1.0, 1.0, 3.0], IDEAL).makespan == 3.0
    assert simulate([1.0, 1.0, 1.0, 3.0], replace(IDEAL, longest_first=False)).makespan == 4.0
    assert simulate([1.0, 1.0, 1.0, 3.0], IDEAL).efficiency == 1.0
    assert simulate([1.0, 1.0, 1.0, 3.0], replace(IDEAL, longest_first=False)).efficiency == 0.75


def test_one_worker_loads_and_does_everything_and_the_driver_takes_the_last_result() -> None:
    outcome = simulate([2.0, 3.0, 4.0], Cluster(1, load_seconds=10.0, driver_seconds=0.5))
    # Half a second for its first block, for its last unit, which it is given alone, and for that result.
    assert outcome.makespan == pytest.approx(10.0 + 0.5 + 7.0 + 0.5 + 2.0 + 0.5)
    assert outcome.efficiency == pytest.approx(9.0 / 20.5)


def test_a_block_hides_the_drivers_time_and_a_slow_driver_bounds_the_run() -> None:
    seconds, cluster = [1.0] * 200, Cluster(4, load_seconds=0.0, driver_seconds=0.1)
    waits, hides = (simulate(seconds, replace(cluster, block=block)).makespan for block in (1, 2))
    assert waits > 1.05 * hides
    assert simulate(seconds, replace(cluster, driver_seconds=1.0)).makespan >= 200 * 1.0


def test_slow_workers_get_fewer_units() -> None:
    seconds, cluster = [1.0] * 300, Cluster(3, load_seconds=0.0, driver_seconds=0.0)
    even, slow = simulate(seconds, cluster), simulate(seconds, replace(cluster, slow_share=1 / 3, slow_factor=4.0))
    assert even.makespan == pytest.approx(100, abs=1)
    # Two whole workers and a quarter of one: had it a third of the units, the run would take 400 seconds.
    assert slow.makespan == pytest.approx(300 / 2.25, abs=5)


@pytest.mark.parametrize("deaths", [5.0, 60.0])
def test_deaths_lose_time_and_no_unit(deaths: float) -> None:
    seconds = gsm8k_like(2_000)
    cluster = Cluster(8, load_seconds=5.0, restart_seconds=2.0)
    quiet, outcome = simulate(seconds, cluster), simulate(seconds, replace(cluster, deaths_per_hour=deaths))
    assert quiet.num_deaths == 0
    assert quiet.lost == 0
    assert outcome.num_deaths > 0
    assert outcome.lost > 0
    assert outcome.makespan > quiet.makespan
    assert outcome.work == quiet.work == pytest.approx(sum(seconds))
    # A worker's life is on average an hour / deaths, of which it spends 7 seconds until it works.
    expected = 8 * outcome.makespan * deaths / 3600
    assert outcome.num_deaths == pytest.approx(expected, abs=4 * expected**0.5 + 2)
    assert simulate(seconds, replace(cluster, deaths_per_hour=deaths)) == outcome, "the same seed, the same run"


def test_each_death_of_the_only_worker_costs_the_time_until_another_one_is_started() -> None:
    seconds = gsm8k_like(500)
    at_once = Cluster(1, load_seconds=3.0, driver_seconds=0.0, deaths_per_hour=20.0, restart_seconds=0.0)
    one, later = simulate(seconds, at_once), simulate(seconds, replace(at_once, restart_seconds=100.0))
    assert one.num_deaths == later.num_deaths > 2
    assert later.makespan == pytest.approx(one.makespan + 100.0 * one.num_deaths)


def test_on_lengths_like_gsm8ks_64_workers_are_busy_for_nine_tenths_of_the_time() -> None:
    cluster = Cluster(64, load_seconds=0.0)
    assert simulate(gsm8k_like(1_319), cluster).efficiency >= 0.9
    assert simulate(gsm8k_like(7_473), cluster).efficiency >= 0.97


def test_a_longer_run_is_the_simulated_one_prolonged() -> None:
    cluster = Cluster(16, load_seconds=20.0, deaths_per_hour=1.0, restart_seconds=5.0)
    whole = simulate(gsm8k_like(9_000), cluster)
    part = prolonged(simulate(gsm8k_like(3_000), cluster), 9_000, 3_000)
    assert part.makespan == pytest.approx(whole.makespan, rel=0.02)
    assert part.efficiency == pytest.approx(whole.efficiency, abs=0.02)


def test_units_are_the_durations_or_draws_from_them() -> None:
    assert planning.units([3.0, 1.0, 2.0], 2, 0) == [3.0, 1.0]
    drawn = planning.units([3.0, 1.0, 2.0], 1000, 0)
    assert set(drawn) == {1.0, 2.0, 3.0}
    assert drawn == planning.units([3.0, 1.0, 2.0], 1000, 0) != planning.units([3.0, 1.0, 2.0], 1000, 1)


class VirtualPool:
    """Workers that have loaded and take `seconds[unit]` for each unit, in time that passes only here."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds, self.now, self.handed = seconds, 0.0, list[tuple[int, int]]()
        self._started: list[int] = []
        self._held: dict[int, deque[int]] = {}
        self._ends: list[tuple[float, int]] = []

    def start(self) -> int:
        worker = len(self._held)
        self._held[worker] = deque()
        self._started.append(worker)
        return worker

    def submit(self, worker: int, unit: int) -> None:
        self.handed.append((worker, unit))
        self._held[worker].append(unit)
        if len(self._held[worker]) == 1:
            self._begin(worker)

    def events(self, seconds: float) -> list[Started | Finished]:
        if self._started:
            return [Started(self._started.pop(0), {})]
        self.now, worker = heapq.heappop(self._ends)
        unit = self._held[worker].popleft()
        if self._held[worker]:
            self._begin(worker)
        return [Finished(worker, unit)]

    def _begin(self, worker: int) -> None:
        heapq.heappush(self._ends, (self.now + self.seconds[self._held[worker][0]], worker))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("known", ["all", "nothing", "a guess"])
def test_simulated_workers_get_the_units_that_a_crew_gives(num_workers: int, known: str) -> None:
    """The same units go to the same workers in the same order, in the same time: stragglers fill the window, too."""
    rng = random.Random(num_workers)
    seconds = [rng.lognormvariate(0, 1.5) for _ in range(400)]
    sizes = {"all": seconds, "nothing": [0.0] * 400, "a guess": [float(rng.randrange(5)) for _ in range(400)]}[known]
    pool = VirtualPool(seconds)
    outcomes = list(Crew(pool, num_workers).do(range(400), sizes.__getitem__))
    assert [each.result for each in outcomes] == list(range(400))
    handed: list[tuple[int, int]] = []
    cluster = Cluster(num_workers, load_seconds=0.0, driver_seconds=0.0)
    simulated = simulate(seconds, cluster, sizes, lambda worker, unit: handed.append((worker, unit)))
    assert handed == pool.handed
    assert simulated.makespan == pytest.approx(pool.now)
    assert simulated.makespan > sum(seconds) / num_workers or num_workers == 1


def test_durations_are_read_from_records_and_from_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": name, "seconds": s, "prefill_seconds": 0.5} for name, s in (("b", 1.0), ("a", 2.0), ("b", 4.0))
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert recorded(tmp_path) == [6.0, 2.5]
    file = tmp_path / "answers.jsonl"
    file.write_text('{"answer": "' + "x" * 400 + '"}\n\n{"answer": "12345678"}\n')
    assert of_answers(file, 0.1, 0.25) == [10.25, 0.45]
    file.write_text('{"question": "?"}\n')
    with pytest.raises(ConfigError, match="whose line 1 has no text in 'answer'; add it"):
        of_answers(file, 0.1, 0.25)
    with pytest.raises(ConfigError, match=r"which has no records\.jsonl; name an evaluation's output folder"):
        recorded(tmp_path / "missing")


def test_the_command_prints_a_line_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_UNITS", 400)
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"answer": "x" * n}) + "\n" for n in range(100, 400)))
    result = CliRunner().invoke(
        command, ["--lengths", str(file), "--workers", "1,4", "--prompts", "300,100000", "--load-seconds", "1"]
    )
    assert result.exit_code == 0, result.output
    lines = [line.split("  ") for line in result.stdout.splitlines() if line.strip()]
    shown = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert shown[0] == list(planning.HEADS)
    assert [line[:2] for line in shown[1:]] == [["300", "1"], ["300", "4"], ["100,000", "1"], ["100,000", "4"]]


def test_every_fault_of_the_command_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        command, ["--workers", "1,x", "--block", "0", "--slow-share", "2", "--load-seconds", "-1"]
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: block is 0; it must be above 0.",
        "error: load-seconds is -1; it must be 0 or more.",
        "error: slow-share is 2; it must be at most 1.",
        "error: records and lengths: give one of them, not both or none.",
        "error: workers is '1,x'; it must be whole numbers >= 1, separated by commas.",
    ]
    result = CliRunner().invoke(command, ["--lengths", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 2
    assert "which cannot be read as JSON Lines" in result.stderr
