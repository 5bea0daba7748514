"""Where an output ends before its limit: at an EOS that may end it, or with the token that completes a stop string.

Before a minimum number of tokens an EOS has no probability: its logits are -inf, the target's and those that drafts are
drawn from, as transformers' `min_new_tokens` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

STOP, STOP_STRING = "stop", "stop_string"  # the reasons to finish before the limit
NO_IDS: frozenset[int] = frozenset()


class StopFinder(Protocol):
    """Finds stop strings in the text of one output."""

    def add(self, token: int) -> bool:
        """Add an emitted token; True if it completes a stop string."""
        ...


class StopRule(Protocol):
    """The stop strings of a request."""

    def begin(self, prompt_ids: Sequence[int]) -> StopFinder: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """What a request says of its end. No EOS is emitted before `min_new_tokens`; with `ignore_eos`, none ends it."""

    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: StopRule | None = None


PLAIN = Ending()  # at the first EOS


@dataclass(slots=True)
class End:
    """The end of one output. `eos` are the ids that end it."""

    eos: frozenset[int] = NO_IDS
    min_new_tokens: int = 0
    finder: StopFinder | None = field(default=None)

    @classmethod
    def of(cls, ending: Ending, eos: frozenset[int], prompt_ids: Sequence[int]) -> End:
        finder = None if ending.stop is None else ending.stop.begin(prompt_ids)
        return cls(NO_IDS if ending.ignore_eos else eos, ending.min_new_tokens, finder)

    def at(self, token: int) -> str:
        """The reason why the output ends with this token, which is emitted next; "" if it does not."""
        if token in self.eos:
            return STOP
        return STOP_STRING if self.finder is not None and self.finder.add(token) else ""

    def banned(self, position: int) -> frozenset[int]:
        """The ids that may not be emitted at this position of the output."""
        return self.eos if position < self.min_new_tokens else NO_IDS
