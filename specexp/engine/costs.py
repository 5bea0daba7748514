"""What a call costs: seconds of a draft step and of a target call on n positions, measured interleaved.

Forwards alone, without sampling or accepting, so that what a method loses outside them shows as unrealised speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from specexp.decoding.asks import Role
from specexp.lm.model import Model


def measure(
    models: Mapping[Role, Model],
    ids: Sequence[int],
    positions: Sequence[int],
    repeats: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[tuple[Role, int], float]:
    """Median seconds of a call on n positions behind `ids`: the target's for each of `positions`, the draft's for 1."""
    jobs: list[tuple[Role, int]] = [("target", n) for n in sorted({1, *positions})]
    if "draft" in models:
        jobs.append(("draft", 1))
    sessions = {role: model.session() for role, model in models.items()}
    for role, session in sessions.items():
        session.feed(models[role].ids(ids), rows=0)
    seconds: dict[tuple[Role, int], list[float]] = {job: [] for job in jobs}
    for repeat in range(repeats + 3):
        for role, n in jobs:
            model, session = models[role], sessions[role]
            tokens = model.ids([ids[i % len(ids)] for i in range(n)])
            model.wait()
            start = clock()
            session.feed(tokens, rows=n)
            model.wait()
            if repeat >= 3:  # the first ones warm up
                seconds[role, n].append(clock() - start)
            session.keep(len(ids))
    return {job: median(found) for job, found in seconds.items()}
