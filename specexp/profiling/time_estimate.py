"""How long a command is going to take: said before it begins, from a few timed calls, and once outputs have been seen.

The first number is a bound: every output as long as it may be. The second one knows some lengths.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specexp.decoding.baseline import Baseline
from specexp.decoding.protocol import Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine, Generation
from specexp.lm.model import Model

LONG = 60.0  # seconds from which on a line says what to lower, and a second one follows
TOKENS = 4  # of a timed output
SLOW = 5.0  # seconds from which on the first output is not decoded again for a warm one


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one prompt's prefill, and of each token after it."""

    prefill: float
    token: float

    @classmethod
    def of(cls, out: Generation) -> Pace:
        return cls(out.prefill_seconds, out.seconds / max(1, len(out.token_ids)))

    def seconds(self, tokens: float) -> float:
        """Of one output."""
        return self.prefill + tokens * self.token


def pace(
    models: Mapping[Role, Model],
    prompts: Sequence[Sequence[int]],
    role: Role = "target",
    clock: Callable[[], float] = time.perf_counter,
    names: Sequence[str] = (),
) -> Pace:
    """Of plain decoding, from a few tokens on the prompt of middle length; `names` are the prompts', for errors."""
    middle = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))[len(prompts) // 2]
    ids, name = prompts[middle], names[middle] if names else ""

    def run() -> Pace:
        engine = Engine({role: models[role]}, clock=clock)
        return Pace.of(engine.generate(Baseline(Warp(), role), ids, TOKENS, CertainRng(), name=name))

    first = run()
    return first if first.seconds(TOKENS) > SLOW else run()


def span(seconds: float) -> str:
    """`8 s`, `12 min`, `3 h 20 min`, with two digits or so."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 600) * 10, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes and hours < 10 else "")


def announce(seconds: float, what: str, lower: str) -> None:
    """Say on standard error how long it takes at most, and what makes it less."""
    less = f" Lower {lower} for less." if seconds > LONG else ""
    print(f"time: at most about {span(seconds)}, {what}.{less}", file=sys.stderr)


class Progress:
    """Says once, when `early` of `total` units are done, how long all of them take: about as long each as those."""

    def __init__(
        self, total: float, early: float, what: str, say: Callable[[str], object], clock: Callable[[], float]
    ) -> None:
        self._total, self._early, self._what, self._say, self._clock = total, early, what, say, clock
        self._begun, self._said = clock(), False

    def seen(self, done: float, total: float | None = None) -> None:
        """So many are done; `total` where more is known of it by now."""
        total = self._total if total is None else total
        if self._said or not done or done < self._early or done >= total:
            return
        self._said = True
        whole = (self._clock() - self._begun) * total / done
        if whole > LONG:
            self._say(f"time: about {span(whole)} in all, by the first {done:.0f} of {total:.0f} {self._what}.")
