"""The order in which an experiment's outputs are decoded, and the engine's request for each.

The order of the settings rotates by one from prompt to prompt, so that none always follows the same other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specexp.decoding.protocol import Role
from specexp.decoding.rng import rng_for
from specexp.engine import Request
from specexp.engine.suffix_automaton import SuffixAutomaton
from specexp.evaluation.preparation import (
    Prepared,
    PreparedMethod,
)
from specexp.lm.runtime import ModelConfig
from specexp.storage.records import RecordFile

BATCHES = 4  # batches of one setting in a row: rows idle only after the last of them
LOWER = "max_new_tokens, gamma or tree_budget"


@dataclass(frozen=True, slots=True)
class Job:
    """One record to be made."""

    index: int  # of the example
    turn: int
    setting: PreparedMethod
    repeat: int


class Memories:
    """What suffix decoding may continue besides a prompt: outputs of earlier prompts by the same setting and repeat.

    Those of prompts that are decoded in the same group do not count, nor does the order in which they are done: a
    resumed run has the same memory, and so has the token view.
    """

    def __init__(self, prepared: Prepared, records: RecordFile) -> None:
        self._prepared, self._records = prepared, records
        # By label and repeat; and the first example that is not in it.
        self._outputs: dict[tuple[str, int], tuple[SuffixAutomaton, int]] = {}

    def earlier(self, job: Job) -> SuffixAutomaton | None:
        """The outputs before this job's group; None for settings that remember none."""
        config = job.setting.config
        if config.suffix_memory != "run":
            return None
        group = job.index - job.index % _group_size(self._prepared)
        automaton, done = self._outputs.get((config.label, job.repeat), (SuffixAutomaton(), 0))
        if done > group:
            automaton, done = SuffixAutomaton(), 0
        for example in self._prepared.examples[done:group]:
            for turn in range(len(example.turns)):
                automaton.begin()
                for token in self._records.find((example.prompt_id, turn, config.label, job.repeat))["token_ids"]:
                    automaton.append(token)
        self._outputs[config.label, job.repeat] = automaton, group
        return automaton


def requests(
    prepared: Prepared, records: RecordFile, jobs: Sequence[Job], memories: Memories | None = None
) -> Iterator[Request]:
    """Yield the engine's request for each job; a later turn needs the records of the earlier ones."""
    experiment = prepared.experiment
    memories = memories or Memories(prepared, records)
    for job in jobs:
        name = prepared.examples[job.index].prompt_id
        rng = rng_for(experiment.temperature, experiment.seed + job.repeat, name, job.turn)
        ids = prompt_of(prepared, records, job)
        earlier = memories.earlier(job)
        yield Request(job.setting.decoder, ids, experiment.max_new_tokens, rng, name=name, earlier=earlier)


def place_of(prepared: Prepared, jobs: Sequence[Job]) -> tuple[str, str, dict[Role, ModelConfig]]:
    """Return the facts for an out-of-memory message at these jobs: the place, what to lower, and what is loaded."""
    names = [f"'{prepared.examples[job.index].prompt_id}'" for job in jobs]
    batch = prepared.experiment.batch
    which = f"prompt {names[0]}" if batch == 1 else f"prompts {names[0]} to {names[-1]}, {batch} at a time,"
    lower = LOWER if batch == 1 else f"batch, {LOWER}"
    return f"{which} with {jobs[0].setting.config.label}", lower, prepared.experiment.models


def prompt_of(prepared: Prepared, records: RecordFile, job: Job) -> list[int]:
    """Return the ids of a turn's prompt, which includes the earlier answers: the baseline's, or the method's own."""
    if job.turn == 0:
        return prepared.prompts[job.index]
    label = job.setting.config.label
    if prepared.experiment.history == "baseline":
        label = next(s.config.label for s in prepared.settings if s.config.method == "baseline")
    example = prepared.examples[job.index]
    keys = [(example.prompt_id, turn, label, job.repeat) for turn in range(job.turn)]
    return prepared.pair.text.encode(example.messages([records.find(key)["text"] for key in keys]))


def _group_size(prepared: Prepared) -> int:
    """How many prompts follow each other with one setting."""
    batch = prepared.experiment.batch
    return 1 if batch == 1 else BATCHES * batch


def missing(prepared: Prepared, records: RecordFile) -> int:
    """Return how many records this experiment still lacks."""
    return sum(len(jobs) for jobs in groups_of(prepared, records))


def groups_of(prepared: Prepared, records: RecordFile) -> Iterator[list[Job]]:
    """Yield the missing records, grouped by what is decoded together: one setting and turn, earlier turns first."""
    done, settings, examples = records.done, prepared.settings, prepared.examples
    size = _group_size(prepared)
    for repeat in range(prepared.experiment.repeats):
        for number, start in enumerate(range(0, len(examples), size)):
            indices = range(start, min(start + size, len(examples)))
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
