"""Runs the same prompts with different numbers of workers and records what each unit takes.

The prompts are divided into blocks. Each block is done by each number of workers before the next one begins, in the
reversed order in every second block: a machine that gets slower slows all of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tqdm import tqdm

from specexp.scale.measured_work import MeasuredWork
from specexp.scale.recorded_runs import Measurement, RecordedRun, UnitTimes
from specexp.scale.recording import Clock, RecordingPool, StartedWorkers, TimedJob, start_all
from specexp.workers.dispatch import Crew, WorkerJob

Opener = Callable[[WorkerJob], AbstractContextManager[Crew]]


def schedule(num_blocks: int, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (block, number of workers) in the order in which they are run."""
    for block in range(num_blocks):
        yield from ((block, number) for number in (numbers if block % 2 == 0 else numbers[::-1]))


def measure(
    work: MeasuredWork,
    numbers: Sequence[int],
    num_blocks: int,
    measurement: Measurement,
    folder: Path,
    opened: Opener,
    clock: Clock = time.monotonic,
) -> None:
    """Make the runs that `measurement` lacks, and write it to the folder after each of them. Raises SpecexpError."""
    done = {(run.block, run.workers) for run in measurement.runs}
    missing = [each for each in schedule(num_blocks, numbers) if each not in done]
    if not missing:
        return
    measurement.write(folder)
    begun = clock()
    with opened(TimedJob(work.job)) as crew:
        measurement.cluster_seconds = clock() - begun
        workers = start_all(crew.pool, max(numbers), clock)
        measurement.load_seconds = workers.load_seconds
        work.prepare(next(iter(workers.facts.values())))
        places = range(work.num_prompts)
        for block, number in tqdm(missing, desc="measuring", unit="run", dynamic_ncols=True):
            prompts = places[block * len(places) // num_blocks : (block + 1) * len(places) // num_blocks]
            there = folder / "runs" / f"{block:04d}-{number}"
            shutil.rmtree(there, ignore_errors=True)  # of a run that was killed
            measurement.runs.append(_run(work, workers, block, number, prompts, there, clock))
            measurement.write(folder)
            shutil.rmtree(there)


def _run(
    work: MeasuredWork, workers: StartedWorkers, block: int, number: int, prompts: Sequence[int], folder: Path,
    clock: Clock,
) -> RecordedRun:  # fmt: skip
    pool = RecordingPool(workers, clock)
    crew = Crew(pool, number)
    crew.first()
    start, spent, of_loop = clock(), time.process_time(), time.thread_time()
    hashed = work.run(crew, prompts, folder)
    pool.close()
    seconds, cpu_seconds, loop_seconds = clock() - start, time.process_time() - spent, time.thread_time() - of_loop
    units = [
        UnitTimes(
            work.size(each.unit), work.prompts_of(each.unit), each.worker, each.submitted - start,
            each.timed.began - start, each.timed.ended - start, each.returned - start, each.timed.cpu_seconds,
            each.timed.cpu_seconds_before,
        )
        for each in sorted(pool.units, key=lambda each: work.place(each.unit))
    ]  # fmt: skip
    return RecordedRun(block, number, seconds, pool.driver_seconds, cpu_seconds, hashed(), units, loop_seconds)
