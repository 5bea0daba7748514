"""The order in which an experiment's outputs are decoded, and the engine's request for each.

The order of the settings rotates by one from prompt to prompt, so that none always follows the same other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from specexp.decoding.protocol import Role
from specexp.decoding.rng import rng_for
from specexp.engine import Request
from specexp.engine.suffix_automaton import SuffixAutomaton
from specexp.evaluation.preparation import (
    Prepared,
    PreparedMethod,
    ServedSetting,
)
from specexp.lm.runtime import ModelConfig
from specexp.storage.record_places import Key
from specexp.storage.records import Record

BATCHES = 4  # batches of one setting in a row: rows idle only after the last of them
LOWER = "max_new_tokens, gamma or tree_budget"


@dataclass(frozen=True, slots=True)
class Job:
    """One record to be made."""

    index: int  # of the example
    turn: int
    setting: PreparedMethod | ServedSetting
    repeat: int


class KnownRecords(Protocol):
    """The records that outputs may depend on: earlier turns, and earlier prompts where a setting remembers them."""

    @property
    def done(self) -> Container[Key]: ...

    def find(self, key: Key) -> Record: ...


@dataclass(slots=True)
class _Memory:
    """The outputs of a setting in one repeat, of the first `done` examples."""

    repeat: int
    outputs: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    done: int = 0


class Memories:
    """What suffix decoding may continue besides a prompt: outputs of earlier prompts by the same setting and repeat.

    Those of prompts that are decoded in the same group do not count, nor does the order in which they are done: a
    resumed run has the same memory, and so has the token view. A setting has one memory at a time, of the latest
    repeat; asked for earlier examples again, it is built anew.
    """

    def __init__(
        self, prepared: Prepared, records: KnownRecords, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._prepared, self._records, self._clock = prepared, records, clock
        self._kept: dict[str, _Memory] = {}  # by label

    def earlier(self, job: Job) -> SuffixAutomaton | None:
        """The outputs before this job's group; None for settings that remember none."""
        self.learn([job])
        memory = self._kept.get(job.setting.config.label)
        return None if memory is None else memory.outputs

    def learn(self, jobs: Sequence[Job]) -> float:
        """Remember the outputs before the group of these jobs, which share setting and repeat.

        Returns each job's share of the seconds that adding the latest group's outputs took. Those before it were in
        the memory already, unless the run was resumed.
        """
        label, repeat = jobs[0].setting.config.label, jobs[0].repeat
        if jobs[0].setting.config.suffix_memory != "run":
            return 0.0
        size = group_size(self._prepared.experiment.batch)
        group = jobs[0].index - jobs[0].index % size
        memory = self._kept.get(label)
        if memory is None or memory.repeat != repeat or memory.done > group:
            memory = self._kept[label] = _Memory(repeat)
        if memory.done == group:
            return 0.0
        latest = max(memory.done, group - size)
        outputs = [self._outputs(label, repeat, *ends) for ends in ((memory.done, latest), (latest, group))]
        memory.done = group
        _add(memory.outputs, outputs[0])
        begun = self._clock()
        _add(memory.outputs, outputs[1])
        return (self._clock() - begun) / len(jobs)

    def _outputs(self, label: str, repeat: int, start: int, stop: int) -> list[list[int]]:
        return [
            self._records.find((example.prompt_id, turn, label, repeat))["token_ids"]
            for example in self._prepared.examples[start:stop]
            for turn in range(len(example.turns))
        ]


def memory_of(outputs: Iterable[Sequence[int]]) -> SuffixAutomaton:
    """Return a memory of these outputs."""
    memory = SuffixAutomaton()
    _add(memory, outputs)
    return memory


def _add(memory: SuffixAutomaton, outputs: Iterable[Sequence[int]]) -> None:
    for output in outputs:
        memory.begin()
        for token in output:
            memory.append(token)


def requests(prepared: Prepared, records: KnownRecords, jobs: Sequence[Job], memories: Memories) -> Iterator[Request]:
    """Yield the engine's request for each job; a later turn needs the records of the earlier ones."""
    experiment = prepared.experiment
    for job in jobs:
        assert isinstance(job.setting, PreparedMethod), "engines are asked elsewhere"
        name = prepared.examples[job.index].prompt_id
        rng = rng_for(experiment.temperature, experiment.seed + job.repeat, name, job.turn)
        ids = prompt_of(prepared, records, job)
        earlier = memories.earlier(job)
        yield Request(
            job.setting.decoder, ids, experiment.max_new_tokens, rng, name=name, earlier=earlier,
            ending=prepared.ending,
        )  # fmt: skip


def place_of(prepared: Prepared, jobs: Sequence[Job]) -> tuple[str, str, dict[Role, ModelConfig]]:
    """Return the facts for an out-of-memory message at these jobs: the place, what to lower, and what is loaded."""
    names = [f"'{prepared.examples[job.index].prompt_id}'" for job in jobs]
    batch = prepared.experiment.batch
    which = f"prompt {names[0]}" if batch == 1 else f"prompts {names[0]} to {names[-1]}, {batch} at a time,"
    lower = LOWER if batch == 1 else f"batch, {LOWER}"
    return f"{which} with {jobs[0].setting.config.label}", lower, prepared.experiment.models


def prompt_of(prepared: Prepared, records: KnownRecords, job: Job) -> list[int]:
    """Return the ids of a turn's prompt, which includes the earlier answers: the baseline's, or the method's own."""
    if job.turn == 0:
        return prepared.prompts[job.index]
    return prepared.pair.text.encode(prepared.examples[job.index].messages(earlier_texts(prepared, records, job)))


def earlier_texts(prepared: Prepared, records: KnownRecords, job: Job) -> list[str]:
    """Return the answers that a later turn follows: the baseline's, or the method's own."""
    label = job.setting.config.label
    if prepared.experiment.history == "baseline":
        label = next(s.config.label for s in prepared.settings if s.config.method == "baseline")
    example = prepared.examples[job.index]
    keys = [(example.prompt_id, turn, label, job.repeat) for turn in range(job.turn)]
    return [records.find(key)["text"] for key in keys]


def group_size(batch: int) -> int:
    """Return how many prompts follow each other with one setting."""
    return 1 if batch == 1 else BATCHES * batch


@dataclass(slots=True)
class MissingRecords:
    """How many records an experiment still lacks, by the setting's label, and in how many groups."""

    records: Counter[str] = field(default_factory=Counter)
    groups: int = 0


def counted(prepared: Prepared, records: KnownRecords) -> MissingRecords:
    """Count the missing records; their jobs are not held."""
    result = MissingRecords()
    for jobs in groups_of(prepared, records):
        result.groups += 1
        result.records[jobs[0].setting.config.label] += len(jobs)
    return result


def missing(prepared: Prepared, records: KnownRecords) -> int:
    """Return how many records this experiment still lacks."""
    return counted(prepared, records).records.total()


def groups_of(prepared: Prepared, records: KnownRecords) -> Iterator[list[Job]]:
    """Yield the missing records, grouped by what is decoded together: one setting and turn, earlier turns first."""
    done = records.done
    for repeat, number in places(prepared):
        yield from groups_at(prepared, repeat, number, done)


def places(prepared: Prepared) -> Iterator[tuple[int, int]]:
    """Yield (repeat, number) of each group of prompts that are decoded together or alone, in the order of a run."""
    for repeat in range(prepared.experiment.repeats):
        for number in range(-(-len(prepared.examples) // group_size(prepared.experiment.batch))):
            yield repeat, number


def indices_at(prepared: Prepared, number: int) -> range:
    """Return the indices of a group's prompts."""
    size = group_size(prepared.experiment.batch)
    return range(number * size, min((number + 1) * size, len(prepared.examples)))


def groups_at(prepared: Prepared, repeat: int, number: int, done: Container[Key]) -> Iterator[list[Job]]:
    """Yield the missing records of one group of prompts."""
    settings, examples, indices = prepared.everything, prepared.examples, indices_at(prepared, number)
    first = (number + repeat) % len(settings)
    for turn in range(max(len(examples[index].turns) for index in indices)):
        for setting in settings[first:] + settings[:first]:
            jobs = [
                Job(index, turn, setting, repeat)
                for index in indices
                if turn < len(examples[index].turns)
                and (examples[index].prompt_id, turn, setting.config.label, repeat) not in done
            ]
            if jobs:
                yield jobs
