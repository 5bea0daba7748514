"""Prepares a run of any size and hands its prompts out: `python -m helpers.large_prompts FOLDER NUM WHAT`.

WHAT is `evaluate` or `collect_labels`, by the command that has workers, or `worker` or `miner`, by one of theirs. The
data are made-up rows in a file. Workers of a command return at once, with records that are made up, or nothing. Prints,
as JSON, the peak of the process's resident memory in MB, how many units were handed out, and a hash of their prompts.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from specexp import config
from specexp.config import Experiment, MiningConfig
from specexp.evaluation import preparation
from specexp.judge import collection
from specexp.judge.mining_progress import PromptFiles
from specexp.storage.records import line_of, record_in
from specexp.storage.run_folder import OutputFolder
from specexp.workers import mining
from specexp.workers.described_pair import describe, described
from specexp.workers.dispatch import Crew, Event, Finished, Started
from specexp.workers.evaluating import Decoded, DecodeUnit, EvaluationJob
from specexp.workers.evaluation_run import EvaluationDriver
from specexp.workers.node_metrics import NodeRun

CHARACTERS = 150  # of a prompt, which are as many tokens of the toy pair
NUM_WORKERS = 8
LOOKED_AT = 400  # units that a worker does


def write_rows(path: Path, number: int) -> None:
    """Write so many rows with prompts that all differ."""
    words = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            text = f"{index} is followed by "
            while len(text) < CHARACTERS:
                text += f"{words.randrange(1_000)}, "
            file.write(json.dumps({"id": f"row-{index}", "prompt": text[:CHARACTERS]}) + "\n")


def experiment_of(data: Path, limit: int) -> Experiment:
    flags = {"task": "prompts", "data": str(data), "limit": str(limit), "methods": "baseline", "max_new_tokens": "4"}
    return config.resolve("toy_quick", flags)


def mining_of(data: Path, limit: int) -> MiningConfig:
    flags = {"task": "prompts", "data": str(data), "limit": str(limit), "max_new_tokens": "4", "batch": "1"}
    return config.resolve_mining("toy_quick", flags)


@dataclass(slots=True)
class InstantDecoding:
    """Workers that have decoded a unit as soon as they have it. `done` says what one returns."""

    facts: Mapping[str, Any]
    done: Any
    num_done: int = 0
    _started: deque[int] = field(default_factory=deque)
    _units: deque[tuple[int, Any]] = field(default_factory=deque)
    _number: int = 0

    def start(self) -> int:
        self._started.append(self._number)
        self._number += 1
        return self._number - 1

    def submit(self, worker: int, unit: Any) -> None:
        self._units.append((worker, unit))

    def events(self, seconds: float) -> Sequence[Event]:
        if self._started:
            result: list[Event] = [Started(worker, self.facts) for worker in self._started]
            self._started.clear()
            return result
        worker, unit = self._units.popleft()
        self.num_done += 1
        return [Finished(worker, self.done(unit))]

    def log_nodes(self, run: NodeRun) -> None:
        raise AssertionError("these workers are on no node")


def evaluate(folder: Path, data: Path, number: int) -> tuple[int, str]:
    """The command's side of an evaluation; records are written as they always are."""
    small = EvaluationJob(experiment_of(data, 1), {}).load()
    first = small.do(DecodeUnit(0, 0))
    known: Any = record_in(first.lines[0])
    experiment, facts = experiment_of(data, number), small.facts()
    prepared = preparation.prepare(experiment, load=described(facts["pair"]))

    def done(unit: DecodeUnit) -> Decoded:
        own = {"prompt_id": f"row-{unit.number}", "settings_hash": experiment.hash}
        return Decoded([line_of({**known, **own, "environment": unit.environment})], unit.environment, first.peaks)

    pool = InstantDecoding(facts, done)
    output = OutputFolder(folder / "run", experiment, resume=False)
    with output.open() as records:
        crew = Crew(pool, NUM_WORKERS)
        crew.first()
        EvaluationDriver(crew, output).run(prepared, output, records)
        assert len(records.records) == number
    return pool.num_done, hash_of(each.turns[0] for each in prepared.examples)


def collect_labels(folder: Path, data: Path, number: int) -> tuple[int, str]:
    """The command's side of a mining run, without the files that it writes: one for each prompt."""
    small = collection.prepare(mining_of(data, 1))
    pair = describe(small.pair, small.config.experiment)
    prepared = collection.prepare(mining_of(data, number), described(pair))
    _, missing = PromptFiles(folder / "progress", range(len(prepared.examples))).parted()
    pool = InstantDecoding({}, lambda unit: unit.indices)
    units = (mining.MiningUnit((index,)) for index in array("q", missing))
    for _ in Crew(pool, NUM_WORKERS).do(units, partial(mining.unit_size, prepared), lambda unit: unit.parts):
        pass
    return pool.num_done, hash_of(each.turns[0] for each in prepared.examples)


def worker(folder: Path, data: Path, number: int) -> tuple[int, str]:
    """A worker of an evaluation, which decodes some units of all places."""
    loaded, texts = EvaluationJob(experiment_of(data, number), {}).load(), []
    for place in range(LOOKED_AT):
        (line,) = loaded.do(DecodeUnit(0, place * number // LOOKED_AT)).lines
        texts.append(record_in(line)["text"])
    return len(texts), hash_of(texts)


def miner(folder: Path, data: Path, number: int) -> tuple[int, str]:
    """A worker of a mining run, likewise."""
    loaded, results = mining.MiningJob(mining_of(data, number)).load(), []
    for place in range(LOOKED_AT):
        results += loaded.do(mining.MiningUnit((place * number // LOOKED_AT,)))
    return len(results), hash_of(str(index) for index, _ in results)


def hash_of(texts: Iterator[str] | list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


def main(folder: str, number: str, what: str) -> None:
    path = Path(folder)
    path.mkdir(parents=True)
    write_rows(path / "rows.jsonl", int(number))
    made = {"evaluate": evaluate, "collect_labels": collect_labels, "worker": worker, "miner": miner}[what]
    units, digest = made(path, path / "rows.jsonl", int(number))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"megabytes": peak, "units": units, "prompts": digest}))


if __name__ == "__main__":
    main(*sys.argv[1:])
