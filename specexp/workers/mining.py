"""Mining of labels on workers: the unit of work is the prompts that one process mines together (`batch`).

A worker returns each prompt's results as the bytes of its file in progress/, which the driver writes as they arrive: a
prompt's labels depend on nothing but the prompt. A group at which a worker dies is mined prompt by prompt.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from specexp.config import MiningConfig
from specexp.judge import collection
from specexp.judge.collection import PreparedMining
from specexp.judge.mining import Miner
from specexp.lm import out_of_memory
from specexp.pair.loading import Pair
from specexp.profiling.time_estimate import Pace, pace
from specexp.storage import environment
from specexp.storage.files import write_whole
from specexp.storage.run_folder import OutputFolder
from specexp.workers import failures
from specexp.workers.crew import crew
from specexp.workers.described_pair import describe, described
from specexp.workers.dispatch import Crew
from specexp.workers.failures import Failure
from specexp.workers.placement import Placement, here
from specexp.workers.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class MiningUnit:
    """Prompts that are mined together, by their indices."""

    indices: tuple[int, ...]

    @property
    def parts(self) -> list[MiningUnit]:
        return [MiningUnit((index,)) for index in self.indices]


@dataclass(frozen=True, slots=True)
class MiningJob:
    """A mining run, as a worker does it."""

    config: MiningConfig

    def load(self) -> MiningWorker:
        return MiningWorker(collection.prepare(self.config))


class MiningWorker:
    """The loaded pair, which mines prompts."""

    def __init__(self, prepared: PreparedMining) -> None:
        self._prepared = prepared
        config = prepared.config
        self._miner = Miner(
            prepared.pair, prepared.task, config.experiment.max_new_tokens, config.dtype, config.batch,
            config.experiment.thinking_budget,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        prepared, pair = self._prepared, self._prepared.pair
        texts = [pair.text.encode(example.messages()) for example in prepared.examples[:8]]
        where = environment.describe(pair.models, pair.text.facts())
        described = describe(pair, prepared.config.experiment)
        return {"pair": described, "pace": pace(pair.models, texts), **here(where)}

    def do(self, unit: MiningUnit) -> list[tuple[int, bytes]]:
        config = self._prepared.config
        what = f"mining {len(unit.indices)} prompts at a time"
        examples = [self._prepared.examples[index] for index in unit.indices]
        with out_of_memory.translate_oom(what, "batch or max_new_tokens", config.experiment.models):
            mined = list(self._miner.mine_all(examples))
        return [(unit.indices[place], collection.packed(result)) for place, result in mined]


@contextmanager
def mining_crew(settings: WorkerSettings, config: MiningConfig) -> Iterator[Crew]:
    """Start the workers of a mining run. Raises WorkerError."""
    with crew(settings, MiningJob(config)) as result:
        yield result


@dataclass(slots=True)
class MiningDriver:
    """One mining run of this crew, into this folder."""

    crew: Crew
    output: OutputFolder

    @property
    def load_pair(self) -> Callable[..., Pair]:
        """Loads nothing: the pair is what the first worker says of its own."""
        return described(self.crew.first()["pair"])

    @property
    def pace(self) -> Pace:
        """The pace of plain decoding, all workers together."""
        result = self.crew.first()["pace"]
        return Pace(result.prefill / self.crew.number, result.token / self.crew.number)

    def mine(self, prepared: PreparedMining, missing: Mapping[int, Path]) -> Iterator[Path]:
        """Write the files of these prompts, by index, as they arrive; yields those that are there, in their order.

        What has failed is in failures.json, and has no file.
        """
        placement = Placement(self.output)
        self.crew.on_change = placement.changed
        placement.changed(self.crew.facts)
        failed: list[Failure] = []
        with tqdm(total=len(missing), desc="mining", unit="prompt", dynamic_ncols=True) as bar:

            def arrived(worker: int, result: Sequence[tuple[int, bytes]]) -> list[Path]:
                placement.name(self.crew.facts[worker])
                for index, content in result:
                    write_whole(missing[index], content)
                bar.update(len(result))
                bar.set_postfix_str(f"{len(self.crew.facts)} workers", refresh=False)
                return [missing[index] for index, _ in result]

            units = _units(array("q", missing), prepared.config.batch)
            size = partial(unit_size, prepared)
            for outcome in self.crew.do(units, size, lambda unit: unit.parts, arrived):
                if outcome.result is None:
                    failed += [Failure(prepared.examples[i].prompt_id, outcome.deaths) for i in outcome.unit.indices]
                yield from outcome.result or ()
        failures.write(self.output, failed)
        for each in failed:
            print(f"warning: {each.sentence}; the labels are without it.", file=sys.stderr)


def _units(indices: array[int], together: int) -> Iterator[MiningUnit]:
    for start in range(0, len(indices), together):
        yield MiningUnit(tuple(indices[start : start + together]))


def unit_size(prepared: PreparedMining, unit: MiningUnit) -> float:
    """About how long a unit takes: all that is known before is the length of its prompts, in characters."""
    return float(sum(len(turn) for index in unit.indices for turn in prepared.examples[index].turns))
