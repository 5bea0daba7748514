"""Runs a benchmark of engines under load: connects, measures the client's capacity, then level by level.

Every measurement is a unit of the journal: a resumed command repeats none that had ended.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from specexp import signals
from specexp.engines.async_client import AsyncEngineClient
from specexp.engines.stream import Answer
from specexp.errors import EngineError
from specexp.evaluation.preparation import Prepared, ServedSetting
from specexp.evaluation.served import Engines
from specexp.load_testing import capacity
from specexp.load_testing.capacity import Capacity
from specexp.load_testing.levels import Level, LoadJob, arrivals, jobs, levels_of, size_of
from specexp.load_testing.loops import Segment, closed_loop, open_loop
from specexp.storage.journal import Journal, Key

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Load:
    """All measurements. `segments` has the rounds of each level and method, in the order of `methods`."""

    prepared: Prepared
    levels: Sequence[Level]
    methods: Sequence[str]
    segments: Mapping[tuple[Level, str], Sequence[Segment]]
    capacities: Sequence[Capacity]
    engines: Mapping[str, Any]

    def capacity(self, level: Level) -> Capacity:
        """Return the capacity with about as many requests in flight as this level had."""
        rounds = [each for method in self.methods for each in self.segments[level, method]]
        most = max(each.most_in_flight for each in rounds)
        above = [each for each in self.capacities if each.clients >= most]
        return above[0] if above else self.capacities[-1]


def engine_facts(engines: Engines) -> dict[str, Any]:
    """Return what a resumed benchmark must have in common with its beginning."""
    return {"engines": engines.facts}


def measure(prepared: Prepared, engines: Engines, journal: Journal) -> Load:
    """Measure every level. Raises EngineError where an engine answers nothing."""
    experiment = prepared.experiment
    levels, names = levels_of(experiment), [setting.config.label for setting in prepared.served]
    clients = sorted({1, *(int(level.value) for level in levels if level.kind == "concurrency")})
    capacities = journal.unit(("capacity",), lambda: [asdict(each) for each in capacity.measure(clients)])
    settings = {setting.config.label: setting for setting in prepared.served}
    plan = list(jobs(levels, names, experiment.repeats))
    total = sum(size_of(job.level, experiment).counted for job in plan)
    with tqdm(total=total, desc=f"load on {len(names)} engines", unit="request", dynamic_ncols=True) as bar:
        for job in plan:
            bar.set_postfix_str(f"{job.method} at {job.level.label}", refresh=False)
            if key_of(job) in journal:
                bar.update(size_of(job.level, experiment).counted)
            else:
                segment = _checked(job, _segment(prepared, engines, settings[job.method], job, bar))
                journal.unit(key_of(job), segment.as_dict)
    segments = {
        (level, name): [
            Segment.of(journal.unit(key_of(LoadJob(level, name, number)), dict)) for number in range(experiment.repeats)
        ]
        for level in levels
        for name in names
    }
    return Load(prepared, levels, names, segments, [Capacity(**each) for each in capacities], engines.facts)


def key_of(job: LoadJob) -> Key:
    """Return the journal's key of a measurement."""
    return "load", job.level.kind, f"{job.level.value:g}", job.method, job.round


async def _segment(
    prepared: Prepared, engines: Engines, setting: ServedSetting, job: LoadJob, bar: tqdm[Any]
) -> Segment:  # fmt: skip
    experiment, engine, loop = prepared.experiment, setting.engine, asyncio.get_running_loop()
    size, num_prompts = size_of(job.level, experiment), len(prepared.examples)
    prompts = [engines.prompt(engine, index) for index in range(num_prompts)]
    sampling, wanted = engines.sampling(job.round), engines.wanted(engine)
    left = size.counted

    def progress() -> None:
        nonlocal left
        if left:
            left -= 1
            bar.update(1)

    async with AsyncEngineClient(engine.endpoint, loop.time) as client:

        async def ask(number: int) -> Answer:
            return await client.ask(prompts[number % num_prompts], sampling, wanted, engine.switch)

        if job.level.kind == "concurrency":
            result = await closed_loop(ask, int(job.level.value), size, num_prompts, progress)
        else:
            due = arrivals(job.level.value, size.warmup + size.counted, experiment.seed, job.round)
            result = await open_loop(ask, due, size, num_prompts, progress)
    bar.update(left)
    return result


def _checked(job: LoadJob, work: Coroutine[Any, Any, Segment]) -> Segment:
    """Run a measurement. Raises EngineError for one without an answer: it has neither a speed nor a latency."""
    try:
        segment = _interruptible(work)
        if segment.samples:
            return segment
        why = segment.failures[0] if segment.failures else "nothing ended within level_seconds; raise it."
    except EngineError as error:  # of the warm-up
        why = str(error)
    raise EngineError(
        f"{job.method} answered none of its requests at {job.level.kind} {job.level.value:g}: {why} Levels that were"
        " measured are kept; resume, or leave this level out."
    )


def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run an event loop that SIGTERM ends as it ends other work.

    An exception that a signal handler raises inside a callback of the loop would be logged and lost.
    """
    terminated = False

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        if threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(signal.SIGTERM, end)
        return await work

    before = signal.getsignal(signal.SIGTERM)
    try:
        with suppress(asyncio.CancelledError):
            return asyncio.run(main())
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    assert terminated, "the loop was cancelled by nobody"
    raise signals.Terminated
