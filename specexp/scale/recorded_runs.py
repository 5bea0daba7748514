"""What real runs on several workers took, unit by unit: measured.json of `python -m specexp.scale measure`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from specexp.errors import OutputError
from specexp.storage.files import read_json, write_json

FILE = "measured.json"
_MAYBE = (float, type(None))
_TIMES = ("submitted", "began", "ended", "returned")
_UNIT = {
    "size": float, "prompts": int, "worker": int, "cpu_seconds": float, "cpu_seconds_before?": _MAYBE,
    **dict.fromkeys(_TIMES, float),
}  # fmt: skip
_SHAPE = {
    "setting": {}, "cluster_seconds": float, "load_seconds": [float],
    "runs": [
        {
            "block": int, "workers": int, "seconds": float, "driver_seconds": float, "driver_cpu_seconds": float,
            "driver_loop_cpu_seconds?": _MAYBE, "results": str,
            "units": [_UNIT],
        }
    ],
}  # fmt: skip
_WAY_OUT = "Put it back as it was written, or measure again in another folder."


@dataclass(frozen=True, slots=True)
class UnitTimes:
    """One unit: seconds of this machine's clock from the run's start, but for those of CPU, which the worker spent.

    The driver submits it, the worker begins and ends it, and the driver has its result.
    """

    size: float  # what the hand-out knew of how long it takes
    prompts: int
    worker: int
    submitted: float
    began: float
    ended: float
    returned: float
    cpu_seconds: float
    cpu_seconds_before: float | None = None  # since the end of the unit before; None was not measured

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class WaitBetween:
    """From the end of a unit until its worker begins the next one.

    A worker has `asked` where its next unit was not submitted when it ended the one before.
    """

    seconds: float
    asked: bool
    cpu_seconds: float | None  # of these, what the worker's process spent; None was not measured


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One block of prompts by so many workers, which had loaded. `units` are in the order of the prompts."""

    block: int
    workers: int
    seconds: float  # from the first hand-out until everything is written
    driver_seconds: float  # of these, in which the driver did not wait for results
    driver_cpu_seconds: float  # of all threads of the driver's process
    results: str  # a hash of what the units returned, timings apart
    units: Sequence[UnitTimes]
    driver_loop_cpu_seconds: float | None = None  # of the thread that hands out and writes; None was not measured

    @property
    def num_prompts(self) -> int:
        return sum(unit.prompts for unit in self.units)

    @property
    def work(self) -> float:
        """Seconds of the units, on all workers together."""
        return math.fsum(unit.seconds for unit in self.units)

    def waits(self) -> Iterator[WaitBetween]:
        """Yield what each worker waited between two of its units."""
        by_worker: dict[int, list[UnitTimes]] = {}
        for unit in sorted(self.units, key=lambda each: each.began):
            by_worker.setdefault(unit.worker, []).append(unit)
        for units in by_worker.values():
            for before, after in pairwise(units):
                yield WaitBetween(after.began - before.ended, after.submitted > before.ended, after.cpu_seconds_before)


@dataclass(slots=True)
class Measurement:
    """Runs of the same prompts on different numbers of workers, and where they were made."""

    setting: dict[str, Any]
    cluster_seconds: float = 0.0  # until Ray had started
    load_seconds: list[float] = field(default_factory=list)  # of each worker, which load at once
    runs: list[RecordedRun] = field(default_factory=list)

    def of(self, workers: int) -> list[RecordedRun]:
        """The runs of so many workers, by block."""
        return sorted((run for run in self.runs if run.workers == workers), key=lambda run: run.block)

    @property
    def numbers(self) -> list[int]:
        """The numbers of workers, ascending."""
        return sorted({run.workers for run in self.runs})

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Measurement:
        """Raises OutputError if the folder has no measurement that can be read."""
        found = read_json(folder / FILE, _SHAPE, _WAY_OUT)
        if found is None:
            raise OutputError(f"'{folder}' has no {FILE}; name the folder of a measurement.")
        runs = [
            RecordedRun(**{**each, "units": [UnitTimes(**unit) for unit in each["units"]]})
            for each in found.pop("runs")
        ]
        return cls(**found, runs=runs)
