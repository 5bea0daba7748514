"""Estimates how long a command will take: before it begins, from a few timed calls, and again after the first outputs.

The first estimate is an upper bound, for outputs of maximum length. The second one is based on actual outputs.
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
from specexp.sequences.token_ids import of_median_length

LONG = 60.0  # seconds above which the line also says what to lower, and a second estimate follows
TOKENS = 4  # length of the timed output
SLOW = 5.0  # seconds above which the first output is not repeated as a warm one


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one prompt's prefill, and per token after it."""

    prefill: float
    token: float

    @classmethod
    def of(cls, out: Generation) -> Pace:
        return cls(out.prefill_seconds, out.seconds / max(1, len(out.token_ids)))

    def seconds(self, tokens: float) -> float:
        """Seconds of one output of this many tokens."""
        return self.prefill + tokens * self.token


def pace(
    models: Mapping[Role, Model],
    prompts: Sequence[Sequence[int]],
    role: Role = "target",
    clock: Callable[[], float] = time.perf_counter,
    names: Sequence[str] = (),
) -> Pace:
    """Measure plain decoding on a few tokens after the prompt of median length; `names` name the prompts in errors."""
    middle = of_median_length(prompts)
    ids, name = prompts[middle], names[middle] if names else ""

    def run() -> Pace:
        engine = Engine({role: models[role]}, clock=clock)
        return Pace.of(engine.generate(Baseline(Warp(), role), ids, TOKENS, CertainRng(), name=name))

    first = run()
    return first if first.seconds(TOKENS) > SLOW else run()


def span(seconds: float) -> str:
    """Seconds as text, with about two digits: `8 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 600) * 10, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes and hours < 10 else "")


def announce(seconds: float, what: str, lower: str) -> None:
    """Print to standard error how long it takes at most, and which setting to lower."""
    less = f" Lower {lower} for less." if seconds > LONG else ""
    print(f"time: at most about {span(seconds)}, {what}.{less}", file=sys.stderr)


class Progress:
    """Reports once, when `early` of `total` units are done, how long all will take, at the same pace per unit."""

    def __init__(
        self, total: float, early: float, what: str, say: Callable[[str], object], clock: Callable[[], float]
    ) -> None:
        self._total, self._early, self._what, self._say, self._clock = total, early, what, say, clock
        self._begun, self._said = clock(), False

    def seen(self, done: float, total: float | None = None) -> None:
        """Note that `done` units are done; `total` replaces the initial total if it is given."""
        total = self._total if total is None else total
        if self._said or not done or done < self._early or done >= total:
            return
        self._said = True
        whole = (self._clock() - self._begun) * total / done
        if whole > LONG:
            self._say(f"time: about {span(whole)} in all, judging by {done:.0f} of {total:.0f} {self._what}.")
