"""The order in which an experiment's outputs are decoded, and what the engine is asked for each.

The order of the settings turns by one from prompt to prompt, so that none always follows the same other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specexp.decoding.protocol import Role
from specexp.decoding.rng import rng_for
from specexp.engine import Request
from specexp.evaluation.preparation import (
    Prepared,
    Setting,
)
from specexp.lm.runtime import ModelConfig
from specexp.storage.records import RecordFile

BATCHES = 4  # in a row of one setting: rows idle only behind the last of them
LOWER = "max_new_tokens, gamma or tree_budget"


@dataclass(frozen=True, slots=True)
class Job:
    """One record to be made."""

    index: int  # of the example
    turn: int
    setting: Setting
    repeat: int


def requests(prepared: Prepared, records: RecordFile, jobs: Sequence[Job]) -> Iterator[Request]:
    """What the engine is asked for each job; a later turn wants the records of the earlier ones."""
    experiment = prepared.experiment
    for job in jobs:
        name = prepared.examples[job.index].prompt_id
        rng = rng_for(experiment.temperature, experiment.seed + job.repeat, name, job.turn)
        ids = prompt_of(prepared, records, job)
        yield Request(job.setting.decoder, ids, experiment.max_new_tokens, rng, name=name)


def place_of(prepared: Prepared, jobs: Sequence[Job]) -> tuple[str, str, dict[Role, ModelConfig]]:
    """For who runs out of memory at these jobs: where that is, what to lower, and what is loaded."""
    names = [f"'{prepared.examples[job.index].prompt_id}'" for job in jobs]
    batch = prepared.experiment.batch
    which = f"prompt {names[0]}" if batch == 1 else f"prompts {names[0]} to {names[-1]}, {batch} at a time,"
    lower = LOWER if batch == 1 else f"batch, {LOWER}"
    return f"{which} with {jobs[0].setting.config.label}", lower, prepared.experiment.models


def prompt_of(prepared: Prepared, records: RecordFile, job: Job) -> list[int]:
    """Ids of a turn: behind the baseline's earlier answers, the same for every method, or behind the method's own."""
    if job.turn == 0:
        return prepared.prompts[job.index]
    label = job.setting.config.label
    if prepared.experiment.history == "baseline":
        label = next(s.config.label for s in prepared.settings if s.config.method == "baseline")
    example = prepared.examples[job.index]
    keys = [(example.prompt_id, turn, label, job.repeat) for turn in range(job.turn)]
    return prepared.pair.text.encode(example.messages([records.find(key)["text"] for key in keys]))


def missing(prepared: Prepared, records: RecordFile) -> int:
    """How many records this experiment still lacks."""
    return sum(len(jobs) for jobs in groups_of(prepared, records))


def groups_of(prepared: Prepared, records: RecordFile) -> Iterator[list[Job]]:
    """The missing records by what is decoded in one go: jobs of one setting and turn, behind those of earlier turns."""
    done, settings, examples = records.done, prepared.settings, prepared.examples
    batch = prepared.experiment.batch
    size = 1 if batch == 1 else BATCHES * batch
    for repeat in range(prepared.experiment.repeats):
        for number, start in enumerate(range(0, len(examples), size)):
            mine = range(start, min(start + size, len(examples)))
            first = (number + repeat) % len(settings)
            for turn in range(max(len(examples[index].turns) for index in mine)):
                for setting in settings[first:] + settings[:first]:
                    jobs = [
                        Job(index, turn, setting, repeat)
                        for index in mine
                        if turn < len(examples[index].turns)
                        and (examples[index].prompt_id, turn, setting.config.label, repeat) not in done
                    ]
                    if jobs:
                        yield jobs
