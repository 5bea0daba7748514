"""Runs on different numbers of workers that are recorded, compared and replayed: with simulated workers, and on Ray."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from helpers.simulated_pool import SimulatedPool
from specexp import config
from specexp.errors import ConfigError, ModelError, OutputError, WorkerError
from specexp.installed import is_installed
from specexp.scale.comparison import compared, handout_costs, replayed, report
from specexp.scale.measure_command import command, replay
from specexp.scale.measured_work import MeasuredEvaluation, MeasuredMining
from specexp.scale.measuring import measure, schedule
from specexp.scale.recorded_runs import FILE, Measurement, RecordedRun, UnitTimes
from specexp.scale.recording import RecordingPool, StartedWorkers, TimedJob, TimedResult, TimedWork
from specexp.workers.dispatch import Crew, Event, Finished, LoadedWork, Started, WorkerJob, WorkerPool

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cubes:
    """What workers do of `CubesOfNumbers`."""

    def load(self) -> LoadedWork:
        return self

    def facts(self) -> dict[str, Any]:
        return {"pair": "cubes"}

    def do(self, unit: int) -> int:
        return unit**3


@dataclass
class CubesOfNumbers:
    """Work without models. At the run of this number it is refused."""

    num_prompts: int = 20
    refused: int = -1
    runs: list[tuple[int, list[int]]] = field(default_factory=list)
    job = Cubes()

    def prepare(self, facts: Any) -> None:
        assert facts == {"pair": "cubes"}

    def run(self, crew: Crew, prompts: Sequence[int], folder: Path) -> Callable[[], str]:
        if len(self.runs) == self.refused:
            raise ModelError("no room.")
        folder.mkdir(parents=True)
        self.runs.append((crew.number, list(prompts)))
        outcomes = [each.result for each in crew.do(prompts, self.size)]
        return lambda: hashlib.sha256(repr(outcomes).encode()).hexdigest()

    def place(self, unit: int) -> tuple[int, ...]:
        return (unit,)

    def size(self, unit: int) -> float:
        return float(unit % 5)

    def prompts_of(self, unit: int) -> int:
        return 2


Opened = Callable[[WorkerJob], AbstractContextManager[Crew]]


def opener(pools: list[SimulatedPool], **how: Any) -> Opened:
    @contextmanager
    def opened(job: WorkerJob) -> Iterator[Crew]:
        assert isinstance(job, TimedJob)
        pools.append(SimulatedPool(job, **how))
        yield Crew(pools[-1], 9)

    return opened


def test_every_second_block_is_done_in_the_reversed_order() -> None:
    assert list(schedule(3, [1, 2])) == [(0, 1), (0, 2), (1, 2), (1, 1), (2, 1), (2, 2)]


def test_every_block_is_done_by_every_number_of_workers_and_each_unit_is_timed(tmp_path: Path) -> None:
    pools: list[SimulatedPool] = []
    work, measurement = CubesOfNumbers(), Measurement({"command": "cubes"})
    measure(work, [1, 2, 3], 3, measurement, tmp_path, opener(pools))
    assert [pool.num_started for pool in pools] == [3], "the same workers do all runs"
    blocks = [list(range(6)), list(range(6, 13)), list(range(13, 20))]
    assert work.runs == [(number, blocks[block]) for block, number in schedule(3, [1, 2, 3])]
    for run in measurement.runs:
        assert len({unit.worker for unit in run.units}) == run.workers
        assert [unit.size for unit in run.units] == [float(i % 5) for i in blocks[run.block]]
        assert run.num_prompts == 2 * len(blocks[run.block])
        for unit in run.units:
            assert 0 <= unit.submitted <= unit.began <= unit.ended <= unit.returned <= run.seconds
            assert unit.cpu_seconds_before is not None
            assert unit.cpu_seconds_before >= 0
        assert 0 < run.driver_seconds <= run.seconds
        assert run.driver_loop_cpu_seconds is not None
        assert 0 < run.driver_loop_cpu_seconds <= run.driver_cpu_seconds + 1e-3
    for block in range(3):
        assert len({run.results for run in measurement.runs if run.block == block}) == 1
    assert len(measurement.load_seconds) == 3
    assert Measurement.read(tmp_path) == measurement
    assert [path.name for path in tmp_path.iterdir()] != [FILE]
    assert not list((tmp_path / "runs").iterdir())


def test_a_measurement_that_was_ended_goes_on_with_the_runs_that_it_lacks(tmp_path: Path) -> None:
    pools: list[SimulatedPool] = []
    begun = Measurement({"command": "cubes"})
    with pytest.raises(ModelError):
        measure(CubesOfNumbers(refused=3), [1, 2], 2, begun, tmp_path, opener(pools))
    kept = Measurement.read(tmp_path)
    assert [(run.block, run.workers) for run in kept.runs] == [(0, 1), (0, 2), (1, 2)]
    work = CubesOfNumbers()
    measure(work, [1, 2], 2, kept, tmp_path, opener(pools))
    assert work.runs == [(1, list(range(10, 20)))]
    measure(CubesOfNumbers(refused=0), [1, 2], 2, Measurement.read(tmp_path), tmp_path, opener(pools))
    assert len(pools) == 2, "nothing was left to do"


@pytest.mark.parametrize("at_start", [True, False])
def test_a_worker_that_dies_ends_the_measurement(tmp_path: Path, at_start: bool) -> None:
    measurement = Measurement({})
    dies = (lambda worker, unit: unit is None) if at_start else (lambda worker, unit: unit == 17)
    with pytest.raises(WorkerError, match="a worker died"):
        measure(CubesOfNumbers(), [1, 2], 2, measurement, tmp_path, opener([], dies=dies))
    assert len(measurement.runs) == (0 if at_start else 2)


@dataclass
class SlowPool:
    """A worker whose result is ready at 4 seconds, and whose driver has it at 5."""

    now: float = 0.0

    def events(self, seconds: float) -> list[Event]:
        self.now = 5.0
        return [Finished(7, TimedResult(1, 2.0, 4.0, 0.5, 0.0))]

    def submit(self, worker: int, unit: Any) -> None:
        self.now += 1.0


def test_the_drivers_time_is_all_in_which_no_result_is_waited_for() -> None:
    slow = SlowPool()
    pool = RecordingPool(StartedWorkers(cast(WorkerPool, slow), {7: {}}, [0.0]), lambda: slow.now)
    assert pool.start() == 7
    assert pool.events(1.0) == [Started(7, {})]
    pool.submit(7, "unit")  # a second
    assert pool.events(1.0) == [Finished(7, 1)]  # one of its five, in which the result came
    slow.now = 8.0  # it is written
    pool.close()
    assert pool.driver_seconds == 1.0 + 1.0 + 3.0


def test_cpu_seconds_between_units_are_those_since_the_unit_before() -> None:
    spent = iter([1.0, 3.0, 3.5, 4.5])
    work = TimedWork(Cubes(), lambda: 0.0, lambda: next(spent))
    first, second = work.do(2), work.do(3)
    assert (first.cpu_seconds, first.cpu_seconds_before) == (2.0, 0.0)
    assert (second.cpu_seconds, second.cpu_seconds_before) == (1.0, 0.5)


def unit(worker: int, began: float, ended: float, submitted: float = 0.0, size: float = 0.0) -> UnitTimes:
    return UnitTimes(size, 1, worker, submitted, began, ended, ended, (ended - began) / 2)


# By hand: one worker takes 10 seconds for units of 4, 3, 2 and 1 s; two of them take 5.5, since one unit took longer.
ONE = RecordedRun(0, 1, 10.0, 0.0, 0.04, "a", [unit(0, 0, 4), unit(0, 4, 7), unit(0, 7, 9), unit(0, 9, 10)])
TWO = RecordedRun(
    0, 2, 5.5, 0.0, 0.08, "a", [unit(0, 0, 4), unit(1, 0, 3), unit(1, 3.25, 5.5, 3.125), unit(0, 4.5, 5.5, 4.0)]
)  # fmt: skip


def test_runs_are_compared_with_the_fewest_workers_and_with_the_simulator() -> None:
    fewest, two = compared(Measurement({}, runs=[TWO, ONE]))
    assert (fewest.workers, two.workers) == (1, 2)
    assert fewest.of_base is None
    assert two.of_base is not None
    assert two.of_base.value == pytest.approx(0.55)
    assert fewest.at_work == 1.0
    assert two.at_work == pytest.approx(10.25 / 11)
    assert fewest.predicted == 10.0
    # One does 4 and 1, the other 3 and 2.25: what it waited in between is what the simulator does not know of.
    assert two.predicted == 5.25
    assert two.from_base == 5.0
    assert two.undisturbed / two.undisturbed_base == pytest.approx(2.625 / 5)


def test_the_hand_out_is_replayed_with_what_it_knew() -> None:
    units = [unit(0, 0, seconds, size=size) for seconds, size in ((1, 1), (1, 1), (1, 1), (3, 0))]
    run = RecordedRun(0, 2, 4.0, 0.0, 0.0, "a", units)
    assert replayed(run, [1.0, 1.0, 1.0, 3.0], 2) == 4.0, "the longest one comes last, as the hand-out did not know"
    known = replace(run, units=[replace(each, size=each.seconds) for each in units])
    assert replayed(known, [1.0, 1.0, 1.0, 3.0], 2) == 3.0


def test_what_handing_out_costs_is_of_a_prompt() -> None:
    costs = handout_costs([replace(TWO, driver_seconds=0.02)])
    assert costs.driver == pytest.approx(0.005)
    assert costs.driver_cpu == pytest.approx(0.02)
    # The third unit was submitted after its worker had ended the second one; the fourth was there by then.
    assert (costs.asked, costs.between, costs.share_asked) == (0.25, 0.5, 0.5)
    assert costs.total == pytest.approx(0.005 + 0.375)
    assert (costs.driver_loop_cpu, costs.worker_cpu, costs.total_cpu) == (None, None, None), "not measured then"
    units = [replace(each, cpu_seconds_before=0.01 * number) for number, each in enumerate(TWO.units)]
    measured = handout_costs([replace(TWO, units=units, driver_loop_cpu_seconds=0.06)])
    assert measured.driver_loop_cpu == pytest.approx(0.015)
    assert measured.worker_cpu == pytest.approx(0.025), "of the third and the fourth: the others had no unit before"
    assert measured.total_cpu == pytest.approx(0.02 + 0.025)
    twice = replace(TWO, units=[replace(each, prompts=2) for each in TWO.units])
    assert handout_costs([twice]).asked == 0.125
    assert handout_costs([ONE]).asked == 0.0


def test_the_report_says_whether_results_are_the_same() -> None:
    measurement = Measurement({"command": "cubes"}, 1.0, [2.0, 3.0], [ONE, TWO])
    lines = list(report(measurement))
    assert lines[0] == "command: cubes"
    assert lines[1].endswith("1.0 s until Ray had started, then 3.0 s until 2 workers had loaded at once")
    assert lines[5].split() == [
        "2", "5.5", "s", "0.550", "93.2%", "5.2", "s", "-4.5%", "5.0", "s", "-9.1%", "0.525",
    ]  # fmt: skip
    assert lines[-1] == "results of 1, 2 workers are the same"
    other = Measurement({}, 1.0, [2.0], [ONE, replace(TWO, results="b")])
    assert list(report(other))[-1] == "results of 1, 2 workers DIFFER in 1 of 1 blocks"


def test_a_number_of_workers_whose_blocks_are_not_all_there_is_not_compared() -> None:
    runs = [ONE, TWO, replace(ONE, block=1)]
    assert [row.workers for row in compared(Measurement({}, runs=runs))] == [1]


def test_the_interval_is_over_blocks() -> None:
    runs = [ONE, TWO, replace(ONE, block=1, seconds=8.0), replace(TWO, block=1, seconds=5.6)]
    _, two = compared(Measurement({}, runs=runs))
    assert two.of_base is not None
    assert two.of_base.value == pytest.approx(11.1 / 18)
    assert two.of_base.low == pytest.approx(0.55)
    assert two.of_base.high == pytest.approx(0.70)


@pytest.mark.parametrize(
    "arguments,faults",
    [
        (["--workers", "1,x"], ["workers is '1,x'; it must be whole numbers >= 1, separated by commas."]),
        (["--blocks", "2,3"], ["blocks is '2,3'; give one number."]),
        (
            ["--command", "evaluate", "--blocks", "2"],
            ["blocks is 2, but an evaluation is measured as a whole; leave blocks out."],
        ),
        (
            ["--methods", "baseline"],
            ["methods is 'baseline', but mining has none; leave it out, or measure evaluate."],
        ),
    ],
)
def test_faults_are_told_at_once(arguments: list[str], faults: list[str]) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {fault}" for fault in faults]


def test_methods_that_need_more_than_the_pair_are_refused() -> None:
    experiment = config.resolve("arith_quick")
    baseline = experiment.methods[0]
    MeasuredEvaluation(experiment)
    judged = replace(experiment, methods=(replace(baseline, judge="autojudge"),))
    auto = config.resolve("arith_quick", {"methods": "speculative_auto"})
    for changed, words in ((judged, "has a judge; measure without it"), (auto, "has gamma auto, by which no two")):
        with pytest.raises(ConfigError, match=words):
            MeasuredEvaluation(changed)


def test_a_folder_without_a_measurement_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(replay, [str(tmp_path)])
    assert (result.exit_code, result.stderr) == (
        2, f"error: '{tmp_path}' has no measured.json; name the folder of a measurement.\n",
    )  # fmt: skip
    Measurement({}).write(tmp_path)
    result = CliRunner().invoke(replay, [str(tmp_path)])
    assert "has no run yet; go on with measure --resume." in result.stderr
    (tmp_path / FILE).write_text('{"setting": {}, "cluster_seconds": 1.0, "load_seconds": [], "runs": [1]}')
    with pytest.raises(OutputError, match="was changed by hand"):
        Measurement.read(tmp_path)


@pytest.mark.slow
def test_mining_and_evaluation_are_measured_with_the_same_results(workplace: Path) -> None:
    mining = MeasuredMining(config.resolve_mining("arith_quick", {"limit": "4", "max_new_tokens": "40", "batch": "1"}))
    evaluation = MeasuredEvaluation(config.resolve("toy_quick", {"limit": "6", "methods": "baseline,speculative"}))
    for name, work, prompts in (("mining", mining, 4), ("evaluation", evaluation, 6)):
        (workplace / name).mkdir()
        measurement = Measurement({})
        measure(work, [1, 2], 1, measurement, workplace / name, opener([]))
        assert [run.num_prompts for run in measurement.runs] == [prompts, prompts]
        assert len({run.results for run in measurement.runs}) == 1
        assert all(unit.size > 0 for run in measurement.runs for unit in run.units)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("ray"), reason="Ray is not installed: make test-ray installs it")
def test_the_command_measures_on_ray_and_shows_it_again(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    more = [
        "--limit", "4", "--max-new-tokens", "40", "--batch", "1", "--blocks", "1", "--output", str(tmp_path / "out"),
    ]  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "specexp.scale", *arguments]
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900, check=False)

    first = run("measure", "--workers", "1,2", *more)
    assert first.returncode == 0, first.stderr
    assert "results of 1, 2 workers are the same" in first.stdout
    assert run("replay", str(tmp_path / "out")).stdout.splitlines() == first.stdout.splitlines()[:-1]
    assert "has a measurement; give --resume" in run("measure", "--workers", "1,2", *more).stderr
    other = run("measure", "--workers", "1,2,3", *more, "--resume")
    assert "was begun with other settings (workers: 1, 2, of 1 threads" in other.stderr
