"""What a certificate's checks compute with the models, in units that do not depend on each other.

This process does them one after another, or workers do them in any order (`on_workers.py`). Which outputs are decoded
together is part of a unit, so that its result is the same wherever it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from specexp.certify.checks import FAILED, INCONCLUSIVE, Check, Subject, in_memory
from specexp.decoding.protocol import Role
from specexp.engine import Engine
from specexp.errors import first_line
from specexp.profiling.time_estimate import Pace, pace

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
LOST = "lost"  # key of a check's details
Tick = Callable[[int], Any]


@dataclass(slots=True)
class Bench:
    """The loaded models, and the engine that was used last: consecutive units with its key keep its caches."""

    subject: Subject
    _key: object = None
    _engine: Engine = field(init=False)

    def engine(self, key: object, rows: int = 1, reuse: bool = False) -> Engine:
        if self._key != key:
            pair = self.subject.prepared.pair
            self._engine, self._key = Engine(pair.models, pair.eos_ids, max_batch_size=rows, reuse=reuse), key
        return self._engine

    def broken(self, error: BaseException) -> Broken:
        """What becomes of a unit whose decoder raised this; the engine that drove it is not used again."""
        self._key = None
        return Broken(f"{type(error).__name__}: {first_line(error, '')}")


class Unit(Protocol[R_co]):
    """Work that any process does alike; must be picklable."""

    @property
    def title(self) -> str:
        """What it is of, as in `prompt 'x'`."""
        ...

    @property
    def num_runs(self) -> int:
        """Its steps of the progress bar."""
        ...

    @property
    def size(self) -> float:
        """About how long it takes, compared with other units of its kind."""
        ...

    @property
    def parts(self) -> Sequence[Unit[R_co]]:
        """The same work in units as small as possible."""
        ...

    def do(self, bench: Bench) -> R_co: ...


@dataclass(frozen=True, slots=True)
class Broken:
    """The result of a unit whose decoder raised one of `BREAKS`."""

    error: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The result of a unit at which so many workers died that it was given up."""

    title: str
    deaths: tuple[str, ...]

    @property
    def sentence(self) -> str:
        return f"{self.title}: {len(self.deaths)} workers died at it ({self.deaths[-1]})"


class Share(Protocol):
    """Does units, and yields their results in their order; of one at which workers died, perhaps those of its parts.

    Every result must be taken before other units are given.
    """

    def __call__(self, units: Sequence[Unit[R]]) -> Iterator[R | Lost]: ...


class Work(Protocol):
    """Who computes with the models."""

    def pace(self) -> Pace:
        """How fast plain decoding is, all together."""
        ...

    def share(self, tick: Tick) -> Share:
        """A way to have units done; `tick` takes the number of runs that are done."""
        ...


@dataclass(frozen=True, slots=True)
class OneProcess:
    """This process, which does units one after another."""

    subject: Subject

    def pace(self) -> Pace:
        return pace_of(self.subject)

    def share(self, tick: Tick) -> Share:
        bench = Bench(self.subject)

        def share(units: Sequence[Unit[R]]) -> Iterator[R | Lost]:
            for unit in units:
                result = unit.do(bench)
                tick(unit.num_runs)
                yield result

        return share


def pace_of(subject: Subject) -> Pace:
    """How fast this process decodes plainly."""
    models = subject.prepared.pair.models
    role: Role = "target" if "target" in models else "draft"
    with in_memory(subject):
        prompts = subject.prompts()
        return pace(models, list(prompts.values()), role, names=list(prompts))


def failure(name: str, by: Broken, while_: str) -> Check:
    """The failed check of a decoder that raised an error."""
    return Check(name, FAILED, f"the decoder failed {while_}: {by.error}")


def without(check: Check, lost: Sequence[Lost]) -> Check:
    """The same check where these units are missing: it cannot pass."""
    if not lost:
        return check
    words = f"{check.sentence} Left out: {'; '.join(each.sentence for each in lost)}."
    verdict = FAILED if check.verdict == FAILED else INCONCLUSIVE
    details = {**check.details, LOST: [[each.title, *each.deaths] for each in lost]}
    return replace(check, verdict=verdict, sentence=words.strip(), details=details)
