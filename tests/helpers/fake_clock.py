"""A toy pair whose calls advance a clock by chosen amounts, so that the measured values are known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specexp import config
from specexp.advise.candidates import validated
from specexp.decoding.protocol import Role
from specexp.evaluation import preparation
from specexp.evaluation.preparation import Prepared
from specexp.judge.judge import Judge
from specexp.lm.model import Array, Branches, Model
from specexp.lm.toy import ToyModel, ToySession


@dataclass
class Clock:
    now: float = 0.0
    waits: dict[str, int] = field(default_factory=dict)

    def __call__(self) -> float:
        return self.now


class ClockedToy(ToyModel):
    """A call takes `per_call` and `per_token` seconds, and each change of its cache `per_keep`, which measurements of
    calls do not include: an overhead of every round."""

    def __init__(self, clock: Clock, per_call: float, per_token: float, per_keep: float = 0.0, **toy: Any) -> None:
        super().__init__(**toy)
        self.clock, self.per_call, self.per_token, self.per_keep = clock, per_call, per_token, per_keep

    def sessions(self, count: int, capacity: int = 0) -> list[ToySession]:
        return [ClockedSession(self) for _ in range(count)]

    def session(self) -> ToySession:
        return ClockedSession(self)


class ClockedSession(ToySession):
    def __init__(self, model: ClockedToy) -> None:
        super().__init__(model)
        self._clocked = model

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        self._clocked.clock.now += self._clocked.per_call + self._clocked.per_token * len(tokens)
        return super().feed(tokens, rows, hidden, branches)

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        self._clocked.clock.now += self._clocked.per_keep
        super().truncate(length, slots)


def prepared_toy(
    models: dict[Role, Model] | None = None,
    judges: dict[str, Judge] | None = None,
    eos_ids: Sequence[int] | None = None,
    **flags: Any,
) -> Prepared:
    """The toy pair with these candidates; `models` replace its own."""
    given = {"methods": "speculative", "limit": 4, "max_new_tokens": 24, "repeats": 2, **flags}
    resolved = validated(config.resolve("toy_quick", given), with_trees=True)
    prepared = preparation.prepare(resolved, judges)
    pair = replace(prepared.pair, models=models or prepared.pair.models)
    pair = replace(pair, eos_ids=pair.eos_ids if eos_ids is None else tuple(eos_ids))
    return replace(prepared, pair=pair)
