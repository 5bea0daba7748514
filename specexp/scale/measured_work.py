"""The commands that can be measured on several workers, with the drivers that they have: mining and evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from specexp.config import Experiment, MiningConfig
from specexp.errors import ConfigError
from specexp.evaluation import preparation
from specexp.evaluation.scheduling import indices_at
from specexp.judge import collection
from specexp.judge.labels import unpack
from specexp.storage.files import make_folder
from specexp.storage.run_folder import OutputFolder
from specexp.workers import evaluation_run, mining
from specexp.workers.described_pair import described
from specexp.workers.dispatch import Crew, Facts, WorkerJob
from specexp.workers.evaluating import DecodeUnit, EvaluationJob

Hashed = Callable[[], str]
CLOCKS = ("seconds", "prefill_seconds", "time_to_first_token", "environment")


class MeasuredWork(Protocol):
    """What is done on several workers."""

    @property
    def job(self) -> WorkerJob:
        """What workers load."""
        ...

    @property
    def num_prompts(self) -> int: ...

    def prepare(self, facts: Facts) -> None:
        """Read the prompts, with what a worker says of its pair. Raises SpecexpError."""
        ...

    def run(self, crew: Crew, prompts: Sequence[int], folder: Path) -> Hashed:
        """Do these prompts in a new folder; returns what then hashes the results there without their timings."""
        ...

    def place(self, unit: Any) -> tuple[int, ...]:
        """A unit's place in the order of all."""
        ...

    def size(self, unit: Any) -> float:
        """What the hand-out knows of how long a unit takes."""
        ...

    def prompts_of(self, unit: Any) -> int:
        """How many prompts a unit has."""
        ...


@dataclass(slots=True)
class MeasuredMining:
    """`collect_labels`: each prompt's results are written, and no label set is made of them."""

    config: MiningConfig
    _prepared: collection.PreparedMining | None = None

    @property
    def job(self) -> WorkerJob:
        return mining.MiningJob(self.config)

    @property
    def num_prompts(self) -> int:
        return len(self._ready.examples)

    def prepare(self, facts: Facts) -> None:
        self._prepared = collection.prepare(self.config, described(facts["pair"]))

    def run(self, crew: Crew, prompts: Sequence[int], folder: Path) -> Hashed:
        output = OutputFolder(folder, self.config, False, "collect_labels")
        with output.hold():
            make_folder(folder / collection.PROGRESS)
            missing = {index: folder / collection.PROGRESS / f"{index:06d}.safetensors" for index in prompts}
            paths = list(mining.MiningDriver(crew, output).mine(self._ready, missing))

        def hashed() -> str:
            result = hashlib.sha256()
            for path in paths:  # not its bytes: safetensors writes a header's entries in any order
                labels, arrays, counts = unpack(path)
                result.update(repr((path.name, labels, sorted(counts.items()))).encode())
                for part, rows in sorted(arrays.items()):
                    result.update(part.encode() + rows.tobytes())
            return result.hexdigest()

        return hashed

    def place(self, unit: mining.MiningUnit) -> tuple[int, ...]:
        return unit.indices

    def size(self, unit: mining.MiningUnit) -> float:
        return mining.unit_size(self._ready, unit)

    def prompts_of(self, unit: mining.MiningUnit) -> int:
        return len(unit.indices)

    @property
    def _ready(self) -> collection.PreparedMining:
        assert self._prepared is not None, "prepare comes first"
        return self._prepared


@dataclass(slots=True)
class MeasuredEvaluation:
    """`evaluate`: the records of all prompts; no report, no token view."""

    experiment: Experiment
    _prepared: preparation.Prepared | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for methods that need more than the pair."""
        faults = [
            f"method {each.label} has a judge; measure without it." for each in self.experiment.methods if each.judge
        ]
        faults += [
            f"method {each.label} has gamma auto, by which no two runs are alike; leave it out."
            for each in self.experiment.methods
            if each.auto_gamma
        ]
        if faults:
            raise ConfigError(faults)

    @property
    def job(self) -> WorkerJob:
        return EvaluationJob(self.experiment, {})

    @property
    def num_prompts(self) -> int:
        return len(self._ready.examples)

    def prepare(self, facts: Facts) -> None:
        self._prepared = preparation.prepare(self.experiment, {}, load=described(facts["pair"]))

    def run(self, crew: Crew, prompts: Sequence[int], folder: Path) -> Hashed:
        assert len(prompts) == self.num_prompts, "an evaluation is one block"
        output = OutputFolder(folder, self.experiment, False)
        with output.open() as records:
            evaluation_run.EvaluationDriver(crew, output).run(self._ready, output, records)

        def hashed() -> str:
            kept = [{name: value for name, value in each.items() if name not in CLOCKS} for each in records.records]
            return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

        return hashed

    def place(self, unit: DecodeUnit) -> tuple[int, ...]:
        return unit.repeat, unit.number

    def size(self, unit: DecodeUnit) -> float:
        return evaluation_run.unit_size(self._ready, unit)

    def prompts_of(self, unit: DecodeUnit) -> int:
        return len(indices_at(self._ready, unit.number))

    @property
    def _ready(self) -> preparation.Prepared:
        assert self._prepared is not None, "prepare comes first"
        return self._prepared
