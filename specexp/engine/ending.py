"""Where an output ends before its limit: at an EOS that may end it, or with the token that completes a stop string.

Before a minimum number of tokens an EOS has no probability: its logits are -inf, the target's and those that drafts are
drawn from, as transformers' `min_new_tokens` has it.

A thought that has used its budget is ended by forced tokens (`thought.py`): they are given, not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from specexp.engine.thought import ThinkingBudget, Thought

STOP, STOP_STRING, LENGTH = "stop", "stop_string", "length"  # the reasons to finish
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
    """What a request says of its end. No EOS is emitted before `min_new_tokens`; with `ignore_eos`, none ends it.

    With `thinking`, the request's limit is that of the answer: the tokens of a thought and its forced end come on top.
    """

    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: StopRule | None = None
    thinking: ThinkingBudget | None = None

    def most(self, max_new_tokens: int) -> int:
        """The most tokens of an output whose limit is `max_new_tokens`."""
        return max_new_tokens + (0 if self.thinking is None else self.thinking.most)


PLAIN = Ending()  # at the first EOS


@dataclass(slots=True)
class End:
    """The end of one output. `eos` are the ids that end it."""

    eos: frozenset[int] = NO_IDS
    min_new_tokens: int = 0
    finder: StopFinder | None = field(default=None)
    thought: Thought | None = None

    @classmethod
    def of(cls, ending: Ending, eos: frozenset[int], prompt_ids: Sequence[int], max_new_tokens: int = 0) -> End:
        """`max_new_tokens` are those outside a thought, where there is a budget for one."""
        finder = None if ending.stop is None else ending.stop.begin(prompt_ids)
        thought = None if ending.thinking is None else ending.thinking.begin(prompt_ids, max_new_tokens)
        return cls(NO_IDS if ending.ignore_eos else eos, ending.min_new_tokens, finder, thought)

    def at(self, token: int, forced: bool = False) -> str:
        """The reason why the output ends with this token, which is emitted next; "" if it does not."""
        if self.thought is not None and not forced:
            self.thought.add(token)
        if token in self.eos:
            return STOP
        if self.finder is not None and self.finder.add(token):
            return STOP_STRING
        return LENGTH if self.thought is not None and not self.thought.num_left else ""

    def cut(self) -> tuple[int, ...]:
        """The tokens that end a thought which the last token brought to its budget; () otherwise."""
        return () if self.thought is None else self.thought.cut()

    def room(self, num_left: int) -> int:
        """How many tokens may be drawn before the limit, `num_left` away, or the end of a budget."""
        return num_left if self.thought is None else min(num_left, self.thought.room)

    def banned(self, position: int) -> frozenset[int]:
        """The ids that may not be emitted at this position of the output."""
        return self.eos if position < self.min_new_tokens else NO_IDS
