"""What a call costs: seconds of a draft step and of a target call on n positions, measured as they come in decoding.

Forwards alone, without sampling or accepting, so that what a method loses outside them shows as unrealised speed. Plain
steps are timed in a row, as plain decoding makes them; draft steps and verifying calls in the rounds of a chain: a
model that runs behind another finds less of itself in the processor's caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from specexp.decoding.asks import Role
from specexp.lm.model import Model, Session

ROW = 4  # plain steps in a row
WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one call: a draft step, and a target call on n positions, n = 1 included."""

    draft_step: float
    target: dict[int, float]

    @property
    def c(self) -> float:
        """Draft step / target step."""
        return self.draft_step / self.target[1]

    def v(self, positions: int) -> float:
        """Target call on n positions / on one."""
        return self.target[positions] / self.target[1]


def measure(
    models: Mapping[Role, Model],
    ids: Sequence[int],
    gammas: Sequence[int],
    repeats: int = 12,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Medians over `repeats` of plain steps and of one round for each draft length, interleaved, behind `ids`."""
    sessions: dict[Role, Session] = {role: model.session() for role, model in models.items()}
    for role, session in sessions.items():
        session.feed(models[role].ids(ids), rows=0)

    def timed(role: Role, calls: int, positions: int) -> float:
        """Seconds of each of `calls` calls on `positions` tokens in a row."""
        model, session = models[role], sessions[role]
        tokens = model.ids([ids[i % len(ids)] for i in range(positions)])
        model.wait()
        start = clock()
        for _ in range(calls):
            session.feed(tokens, rows=positions)
        model.wait()
        return (clock() - start) / calls

    plain: list[float] = []
    draft: list[float] = []
    verify: dict[int, list[float]] = {gamma + 1: [] for gamma in gammas}
    for repeat in range(repeats + WARM_UP):
        found = [timed("target", ROW, 1)]
        _rewind(sessions, len(ids))
        for gamma in gammas:
            found += [timed("draft", gamma, 1), timed("target", 1, gamma + 1)]
            _rewind(sessions, len(ids))
        if repeat >= WARM_UP:
            plain.append(found[0])
            draft += found[1::2]
            for gamma, seconds in zip(gammas, found[2::2], strict=True):
                verify[gamma + 1].append(seconds)
    return Costs(median(draft), {1: median(plain), **{n: median(seconds) for n, seconds in verify.items()}})


def _rewind(sessions: Mapping[Role, Session], length: int) -> None:
    for session in sessions.values():
        session.keep(length)
