"""What a worker does of an evaluation. `evaluation_run.py` is the driver's side.

The unit of work is a prompt with all its settings, in one repeat; with `batch`, the prompts that are decoded together.
A worker does one unit at a time, in the order of one process: its timings of one prompt are comparable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from specexp.config import Experiment
from specexp.decoding.draft_length import RelativeCosts
from specexp.engine import Engine
from specexp.evaluation import divergence, preparation, runner
from specexp.evaluation.measured_costs import adapted, relative_costs
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.scheduling import LOWER, Memories, groups_at
from specexp.evaluation.token_view.data import Budget, trace
from specexp.judge.judge import Judge
from specexp.lm import out_of_memory
from specexp.profiling import memory
from specexp.storage import environment
from specexp.storage.journal import Journal
from specexp.storage.record_places import Key
from specexp.storage.records import Record, key_of, line_of, record_in
from specexp.tasks.example import place_of
from specexp.workers.described_pair import describe
from specexp.workers.placement import here


@dataclass(frozen=True, slots=True)
class DecodeUnit:
    """The missing records of one group of prompts in one repeat. `known` are those that its prompts have already.

    `environment` is the name of the worker's, as far as the driver knows when it hands the unit out.
    """

    repeat: int
    number: int
    known: Sequence[Record] = ()
    costs: RelativeCosts | None = None  # of `gamma: auto`
    environment: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A unit's records as the lines of their file, and the peak memory of the worker that made them.

    The worker makes lines and checksums: they take longer than handing out, and the driver writes for all workers.
    """

    lines: Sequence[str]
    environment: str
    peaks: Mapping[str, Any]

    def lines_in(self, environment: str) -> Sequence[str]:
        """The lines of records that were made in this environment, if it has another name by now."""
        if environment == self.environment:
            return self.lines
        records = [record_in(line) for line in self.lines]
        return [line_of(record | {"environment": environment}) for record in records]


@dataclass(frozen=True, slots=True)
class DraftCostsUnit:
    """What calls cost relative to each other, for chains of at most `most` tokens."""

    most: int


@dataclass(frozen=True, slots=True)
class DifferenceUnit:
    """Why one output is not plain decoding's. `known` are the records of the turns before."""

    record: Record
    plain: Record
    known: Sequence[Record]


@dataclass(frozen=True, slots=True)
class TokenViewUnit:
    """The token view of these prompts, which may take so many seconds. `known` are their records."""

    chosen: Sequence[str]
    known: Sequence[Record]
    seconds: float
    costs: RelativeCosts | None = None


@dataclass(slots=True)
class RecordsOfUnit:
    """The records that a worker knows of, by key."""

    by_key: dict[Key, Record] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordsOfUnit:
        return cls({key_of(record): record for record in records})

    @property
    def done(self) -> Set[Key]:
        return self.by_key.keys()

    def find(self, key: Key) -> Record:
        return self.by_key[key]

    def append(self, record: Record) -> None:
        self.by_key[key_of(record)] = record


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """An evaluation, as a worker does it."""

    experiment: Experiment
    judges: Mapping[str, Judge]

    def load(self) -> EvaluationWorker:
        prepared = preparation.prepare(self.experiment, self.judges)
        return EvaluationWorker(prepared)


class EvaluationWorker:
    """The loaded pair, and what is done with it. Everything is warm when it is made."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        experiment = prepared.experiment
        self._engine = Engine(prepared.pair.models, prepared.pair.eos_ids, max_batch_size=experiment.batch)
        with out_of_memory.translate_oom("warming up", LOWER, experiment.models):
            self._paces = runner.warm_up(prepared, self._engine)
        self._peaks = memory.MemoryPeaks()
        self._costs: RelativeCosts | None = None

    def facts(self) -> dict[str, Any]:
        pair = self._prepared.pair
        where = environment.describe(pair.models, pair.text.facts())
        return {"pair": describe(pair, self._prepared.experiment), "paces": self._paces, **here(where)}

    def do(self, unit: Any) -> Any:
        match unit:
            case DecodeUnit():
                return self._decoded(unit)
            case DraftCostsUnit(most):
                return relative_costs(self._prepared, most)
            case DifferenceUnit(record, plain, known):
                engine = Engine(self._prepared.pair.models)
                return divergence.entry_of(self._prepared, engine, RecordsOfUnit.of(known), record, plain)
            case TokenViewUnit():
                return self._traced(unit)
        raise AssertionError(f"a unit of another job: {type(unit).__name__}")

    def _decoded(self, unit: DecodeUnit) -> Decoded:
        self._adapt(unit.costs)
        prepared, records = self._prepared, RecordsOfUnit.of(unit.known)
        memories = Memories(prepared, records)
        made: list[str] = []
        for jobs in groups_at(prepared, unit.repeat, unit.number, set(records.done)):
            for record in runner.decoded(prepared, records, jobs, self._engine, memories, self._peaks):
                records.append(record)
                made.append(line_of(record | {"environment": unit.environment}))
        self._peaks.take()
        return Decoded(made, unit.environment, self._peaks.as_dict())

    def _traced(self, unit: TokenViewUnit) -> dict[str, Any]:
        self._adapt(unit.costs)
        chosen = [place_of(self._prepared.examples, name) for name in unit.chosen]
        return trace(self._prepared, RecordsOfUnit.of(unit.known), chosen, Journal(), Budget(unit.seconds))

    def _adapt(self, costs: RelativeCosts | None) -> None:
        if costs is not None and costs != self._costs:
            self._prepared, self._costs = adapted(self._prepared, costs), costs
