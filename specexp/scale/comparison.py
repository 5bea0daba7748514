"""Compares recorded runs with each other and with the simulator: what more workers save, and what handing out costs.

A run is predicted by the simulator from the seconds that its own units took, with the sizes that its hand-out knew, and
the driver's seconds a unit: what is left is the difference between the simulated order of things and the real one. It
is predicted again from one worker's units: the difference is then also what workers on one machine take from each
other. Replayed with the CPU seconds of units, a run is one that nothing else disturbs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from specexp.metrics.statistics import Interval, Timed, rate_ratio
from specexp.scale.planning import aligned, duration
from specexp.scale.recorded_runs import Measurement, RecordedRun
from specexp.scale.simulation import Cluster, simulate
from specexp.workers.handout import BLOCK

HEADS = ("workers", "time", "of the fewest", "95 % interval", "at work", "predicted", "off", "from the fewest", "off",
         "by CPU seconds")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """All blocks by one number of workers; seconds. `base` is the smallest number that was measured."""

    workers: int
    seconds: float
    of_base: Interval | None  # as a part of the base's; None of the base, and without an interval for one block
    at_work: float  # share of the workers' time in which they were at units
    predicted: float  # from its own units
    from_base: float  # predicted from the base's units
    undisturbed: float  # predicted from the CPU seconds of its own units
    undisturbed_base: float  # the same of the base


def replayed(run: RecordedRun, seconds: Sequence[float], workers: int) -> float:
    """Return the simulated makespan of a run's units that take these seconds, on so many workers."""
    driver = run.driver_seconds / len(run.units)
    cluster = Cluster(workers, load_seconds=0.0, driver_seconds=driver, block=BLOCK)
    return simulate(seconds, cluster, [unit.size for unit in run.units]).makespan


def compared(measurement: Measurement) -> list[ComparedRuns]:
    """Return a comparison for each number of workers whose blocks are all there."""
    base = measurement.of(measurement.numbers[0])
    result = []
    undisturbed_base = math.fsum(replayed(run, _cpu(run), run.workers) for run in base)
    for number in measurement.numbers:
        runs = measurement.of(number)
        if [run.block for run in runs] != [run.block for run in base]:
            continue
        result.append(ComparedRuns(
            number,
            math.fsum(run.seconds for run in runs),
            None if number == base[0].workers else _ratio(base, runs),
            math.fsum(run.work for run in runs) / (number * math.fsum(run.seconds for run in runs)),
            math.fsum(replayed(run, [unit.seconds for unit in run.units], number) for run in runs),
            math.fsum(replayed(run, [unit.seconds for unit in run.units], number) for run in base),
            math.fsum(replayed(run, _cpu(run), number) for run in runs),
            undisturbed_base,
        ))  # fmt: skip
    return result


def _cpu(run: RecordedRun) -> list[float]:
    return [unit.cpu_seconds for unit in run.units]


def _ratio(base: Sequence[RecordedRun], runs: Sequence[RecordedRun]) -> Interval:
    """Seconds of `runs` / seconds of `base`, with the interval over blocks."""
    ones = [1.0] * len(runs)
    return rate_ratio(
        Timed(ones, [[run.seconds] for run in base]), Timed(ones, [[run.seconds] for run in runs])
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class HandoutCosts:
    """Seconds a prompt that handing out took in some runs. Those of a clock contain waiting for a core."""

    driver: float  # of the driver, in which it did not wait for results
    driver_cpu: float  # CPU seconds of all threads of its process, Ray's among them
    driver_loop_cpu: float | None  # CPU seconds of the thread that hands out and writes; None was not measured
    worker_cpu: float | None  # CPU seconds of a worker's process between two units; None was not measured
    between: float  # of workers, between two units of which the second was there
    asked: float  # of workers, from the end of a unit until they had and began the next one, which was not there
    share_asked: float  # of these pairs of units
    worst: float  # 95 % of all waits of workers between two units were shorter; a unit, not a prompt

    @property
    def total(self) -> float:
        """What a prompt costs a worker and the driver together, at the mean."""
        return self.driver + (1 - self.share_asked) * self.between + self.share_asked * self.asked

    @property
    def total_cpu(self) -> float | None:
        """The same in CPU seconds: what is left of it where nobody waits for a core. None was not measured."""
        return None if self.worker_cpu is None else self.driver_cpu + self.worker_cpu


def handout_costs(runs: Sequence[RecordedRun]) -> HandoutCosts:
    prompts = sum(run.num_prompts for run in runs)
    each = prompts / sum(len(run.units) for run in runs)  # prompts a unit
    waits = [wait for run in runs for wait in run.waits()]
    between, asked = ([wait.seconds for wait in waits if wait.asked == which] for which in (False, True))
    loop = [run.driver_loop_cpu_seconds for run in runs if run.driver_loop_cpu_seconds is not None]
    cpu = [wait.cpu_seconds for wait in waits if wait.cpu_seconds is not None]
    return HandoutCosts(
        math.fsum(run.driver_seconds for run in runs) / prompts,
        math.fsum(run.driver_cpu_seconds for run in runs) / prompts,
        math.fsum(loop) / prompts if len(loop) == len(runs) else None,
        fmean(cpu) / each if cpu and len(cpu) == len(waits) else None,
        fmean(between) / each if between else 0.0,
        fmean(asked) / each if asked else 0.0,
        len(asked) / len(waits) if waits else 0.0,
        float(np.percentile([wait.seconds for wait in waits], 95)) if waits else 0.0,
    )


def report(measurement: Measurement) -> Iterator[str]:
    """Yield the lines that say what was measured."""
    yield from (f"{name}: {value}" for name, value in measurement.setting.items())
    loads = measurement.load_seconds
    yield (
        f"loading, apart from all times below: {measurement.cluster_seconds:.1f} s until Ray had started, then"
        f" {max(loads):.1f} s until {len(loads)} workers had loaded at once"
    )
    yield ""
    rows = compared(measurement)
    yield from aligned([HEADS, *(_cells(row, rows[0]) for row in rows)])
    yield ""
    for number in measurement.numbers:
        costs = handout_costs(measurement.of(number))
        yield (
            f"handing out to {number}, a prompt: {_ms(costs.total)} in all by the clock, waiting for a core included;"
            f" driver {_ms(costs.driver)}; a worker {_ms(costs.between)} between units, {_ms(costs.asked)} where it"
            f" had to ask ({costs.share_asked:.0%} of units); 95 % of the waits of a unit are below {_ms(costs.worst)}"
        )
        yield (
            f"  of CPU time: {_ms(costs.total_cpu)} in all; driver {_ms(costs.driver_cpu)}, of which"
            f" {_ms(costs.driver_loop_cpu)} in the thread that hands out and writes; a worker"
            f" {_ms(costs.worker_cpu)} between units"
        )
    by_block: dict[int, set[str]] = {}
    for run in measurement.runs:
        by_block.setdefault(run.block, set()).add(run.results)
    different = [block for block, results in by_block.items() if len(results) > 1]
    words = f"DIFFER in {len(different)} of {len(by_block)} blocks" if different else "are the same"
    yield f"results of {', '.join(map(str, measurement.numbers))} workers {words}"


def _cells(row: ComparedRuns, base: ComparedRuns) -> list[str]:
    ratio = row.of_base
    return [
        str(row.workers),
        duration(row.seconds),
        f"{row.seconds / base.seconds:.3f}",
        "" if ratio is None or ratio.low == ratio.high else f"{ratio.low:.3f} to {ratio.high:.3f}",
        f"{row.at_work:.1%}",
        duration(row.predicted),
        f"{row.predicted / row.seconds - 1:+.1%}",
        duration(row.from_base),
        f"{row.from_base / row.seconds - 1:+.1%}",
        f"{row.undisturbed / row.undisturbed_base:.3f}",
    ]


def _ms(seconds: float | None) -> str:
    return "(not measured)" if seconds is None else f"{1000 * seconds:.2f} ms"
