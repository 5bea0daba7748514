"""Times methods of this project side by side: one prompt in, ids and seconds out, interleaved.

All are timed in the same way: the whole call, prefill included, from an idle device to an idle device; a record holds
the decode seconds. This module uses neither torch nor MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Protocol

from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine
from specexp.evaluation.preparation import Prepared, PreparedMethod
from specexp.evaluation.runner import record_of
from specexp.evaluation.scheduling import Job
from specexp.lm import out_of_memory
from specexp.methods import BuildContext, decoder_for
from specexp.metrics.statistics import Timed
from specexp.metrics.summary import check_identities
from specexp.storage.journal import Journal, Key
from specexp.storage.records import Record


@dataclass(frozen=True, slots=True)
class Timing:
    """What one call emitted and took. `record` is set for a method of this project, with its decode seconds."""

    token_ids: list[int]
    seconds: float
    record: Record | None = None


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def gamma(self) -> int: ...

    @property
    def temperature(self) -> float: ...

    def time(self, index: int, repeat: int) -> Timing:
        """Decode the prompt of this index, with the same rng in every repeat."""
        ...


@dataclass(frozen=True, slots=True)
class SpecexpContender:
    """A method of this project. `clock` returns seconds."""

    name: str
    prepared: Prepared
    setting: PreparedMethod
    temperature: float = 0.0
    clock: Callable[[], float] = time.perf_counter

    @property
    def gamma(self) -> int:
        return self.setting.config.gamma

    def time(self, index: int, repeat: int) -> Timing:
        prepared, config = self.prepared, self.setting.config
        experiment = prepared.experiment
        engine = Engine(prepared.pair.models, prepared.pair.eos_ids, clock=self.clock)
        name, ids = prepared.examples[index].prompt_id, prepared.prompts[index]
        rng = rng_for(self.temperature, experiment.seed, name)
        prepared.pair.models["target"].wait()
        start = self.clock()
        out = engine.generate(self.setting.decoder, ids, experiment.max_new_tokens, rng, name=name)
        seconds = self.clock() - start
        record = record_of(prepared, Job(index, 0, self.setting, repeat), out)
        check_identities(record, config.tree, config.bonus)
        return Timing(out.token_ids, seconds, record)

    def at(self, temperature: float) -> SpecexpContender:
        """Return the same method, sampling at this temperature."""
        pair = self.prepared.pair
        making = BuildContext(Warp(temperature), self.prepared.judges, pair.eos_ids, vocabulary=pair.vocabulary)
        decoder: Decoder = decoder_for(self.setting.config, making)
        setting = replace(self.setting, decoder=decoder)
        return replace(self, name=sampled(self.name, temperature), setting=setting, temperature=temperature)


Timings = Mapping[str, Sequence[Sequence[Timing]]]  # by name: [P][R]


def sampled(name: str, temperature: float) -> str:
    return f"{name}_t{temperature:g}"


def rotated(contenders: Sequence[Any], repeat: int, index: int) -> Iterator[Any]:
    """Yield all of them, starting with another one in every repeat and for every prompt."""
    first = (repeat + index) % len(contenders)
    yield from contenders[first:]
    yield from contenders[:first]


@dataclass(slots=True)
class TimingPhase:
    """Timings that are stored in a journal under this name. `cold` are contenders that ran in an earlier process but
    not yet in this one: each runs once, untimed, on prompt `longest` before it is timed."""

    journal: Journal = field(default_factory=Journal)
    name: str = "timed"
    cold: set[str] = field(default_factory=set)
    longest: int = 0

    def key(self, contender: Contender, index: int, repeat: int) -> Key:
        return self.name, contender.name, index, repeat

    def is_done(self, contenders: Sequence[Contender], num_prompts: int, repeats: int) -> bool:
        """True if the journal has all of these timings."""
        jobs = product(contenders, range(num_prompts), range(repeats))
        return all(self.key(*job) in self.journal for job in jobs)

    def timing(self, contender: Contender, index: int, repeat: int) -> Timing:
        key = self.key(contender, index, repeat)
        if contender.name in self.cold and key not in self.journal:
            once(contender, self.longest, 0)
        if key not in self.journal:
            self.cold.discard(contender.name)
        return Timing(**self.journal.unit(key, lambda: asdict(once(contender, index, repeat))))


def timings(
    contenders: Sequence[Contender],
    num_prompts: int,
    repeats: int,
    bar: Any,
    before: Callable[[], None] = lambda: None,
    phase: TimingPhase | None = None,
) -> Timings:
    """Time each contender on each prompt in each repeat, interleaved; `before` is called before each prompt."""
    phase = phase or TimingPhase()
    result: dict[str, list[list[Timing]]] = {c.name: [[] for _ in range(num_prompts)] for c in contenders}
    for repeat in range(repeats):
        for index in range(num_prompts):
            before()
            for contender in rotated(contenders, repeat, index):
                bar.set_postfix_str(contender.name, refresh=False)
                result[contender.name][index].append(phase.timing(contender, index, repeat))
                bar.update()
    return result


def once(contender: Contender, index: int, repeat: int) -> Timing:
    """Make one timing. Raises ModelError if memory runs out."""
    with out_of_memory.translate_oom(contender.name, "max_new_tokens or gamma"):
        return contender.time(index, repeat)


def whole(timings: Sequence[Sequence[Timing]]) -> Timed:
    """Return tokens and end-to-end seconds."""
    return _timed(timings, lambda timing: timing.seconds)


def decoding(timings: Sequence[Sequence[Timing]]) -> Timed:
    """Return tokens and decode seconds, for a method of this project."""
    return _timed(timings, lambda timing: timing.record["seconds"] if timing.record else float("nan"))


def _timed(timings: Sequence[Sequence[Timing]], seconds: Callable[[Timing], float]) -> Timed:
    return Timed([len(row[0].token_ids) for row in timings], [[seconds(timing) for timing in row] for row in timings])
