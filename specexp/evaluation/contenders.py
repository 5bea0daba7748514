"""Those that a benchmark times, this project's methods and transformers' alike: one prompt in, ids and seconds out.

Both sides are timed the same way: the whole call, prefill included, from an idle device to an idle device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from specexp.decoding.dice import dice_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine
from specexp.evaluation.methods import Making, decoder_for
from specexp.evaluation.metrics import check_identities
from specexp.evaluation.peers import Peer
from specexp.evaluation.records import Record
from specexp.evaluation.runner import Job, Prepared, Setting, record_of


@dataclass(frozen=True, slots=True)
class Timing:
    """What one call emitted and took. `record` is that of a method of this project, with its decode seconds."""

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
        """Decode the prompt of this index, with the same dice in every repeat."""
        ...


@dataclass(frozen=True, slots=True)
class Own:
    """A method of this project."""

    name: str
    prepared: Prepared
    setting: Setting
    temperature: float = 0.0

    @property
    def gamma(self) -> int:
        return self.setting.config.gamma

    def time(self, index: int, repeat: int) -> Timing:
        prepared, config = self.prepared, self.setting.config
        experiment = prepared.experiment
        engine = Engine(prepared.pair.models, prepared.pair.eos_ids)
        dice = dice_for(self.temperature, experiment.seed, prepared.examples[index].prompt_id)
        prepared.pair.models["target"].wait()
        start = time.perf_counter()
        out = engine.generate(self.setting.decoder, prepared.prompts[index], experiment.max_new_tokens, dice)
        seconds = time.perf_counter() - start
        record = record_of(prepared, Job(index, 0, self.setting, repeat), out)
        check_identities(record, config.tree, config.bonus)
        return Timing(out.token_ids, seconds, record)

    def at(self, temperature: float) -> Own:
        """The same method, sampling."""
        making = Making(Warp(temperature), self.prepared.judges, self.prepared.pair.eos_ids)
        decoder: Decoder = decoder_for(self.setting.config, making)
        setting = replace(self.setting, decoder=decoder)
        return Own(sampled(self.name, temperature), self.prepared, setting, temperature)


@dataclass(frozen=True, slots=True)
class Theirs:
    """A call of transformers; with `most`, of so many tokens only."""

    name: str
    prepared: Prepared
    peer: Peer
    most: int | None = None

    @property
    def gamma(self) -> int:
        return self.peer.gamma

    @property
    def temperature(self) -> float:
        return self.peer.temperature

    def time(self, index: int, repeat: int) -> Timing:
        prepared = self.prepared
        ids = prepared.prompts[index]
        room = Engine(prepared.pair.models).room_for(ids, prepared.experiment.max_new_tokens)
        return timed(self.peer, ids, self.most or room, prepared.experiment.seed)


def timed(peer: Peer, ids: Sequence[int], max_new_tokens: int, seed: int) -> Timing:
    """One call of transformers."""
    call, target = peer.prepare(ids, max_new_tokens), peer.models["target"]
    with call.ready(seed):
        target.wait()
        start = time.perf_counter()
        found = call.run()
        target.wait()
        seconds = time.perf_counter() - start
    return Timing(call.emitted(found), seconds)


def sampled(name: str, temperature: float) -> str:
    return f"{name}_t{temperature:g}"


def rotated(contenders: Sequence[Any], repeat: int, index: int) -> Iterator[Any]:
    """All of them, from another one on in every repeat and for every prompt."""
    first = (repeat + index) % len(contenders)
    yield from contenders[first:]
    yield from contenders[:first]
