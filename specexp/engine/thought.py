"""A budget for the thought of a model that thinks before it answers: where it is used up, the thought is ended.

The tokens that end it are put in as if the prompt had them (Qwen3 2505.09388, 4.3): no model draws or scores them, no
draft proposes them, and no count of accepted tokens has them. All else is drawn from what it would be after a prompt
with the same ids, by every method: a round ends where the budget does. An output has at most one such thought, the
first; what it says after it, another thought included, is its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """At most `num_tokens` >= 1 tokens after `start_ids` and up to `end_ids`, or `forced_ids` end them.

    `is_open` says of a prompt whether it ends within a thought. Where `start_ids` are (), only a prompt begins one.
    """

    num_tokens: int
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    forced_ids: tuple[int, ...]
    is_open: Callable[[Sequence[int]], bool]
    resumed: Thought | None = None  # the prompt ends with the beginning of an output, of which this is the thought

    @property
    def most(self) -> int:
        """The most tokens of a thought and its forced end."""
        return self.num_tokens + len(self.forced_ids)

    def begin(self, prompt_ids: Sequence[int], num_left: int) -> Thought:
        if self.resumed is not None:
            return self.resumed.copy()
        return Thought(self, num_left, is_open=self.is_open(prompt_ids))

    def read(self, prompt_ids: Sequence[int], output: Sequence[int], num_left: int) -> Reading:
        """Read the beginning of an output, which ends anywhere."""
        thought, forced = self.begin(prompt_ids, num_left), range(0)
        lacking: tuple[int, ...] = ()
        for place, token in enumerate(output):
            if place not in forced:
                thought.add(token)
                if ids := thought.cut():
                    forced = range(place + 1, min(place + 1 + len(ids), len(output)))
                    lacking = ids[len(forced) :]
        return Reading(thought, forced, lacking)


@dataclass(frozen=True, slots=True)
class Reading:
    """The thought after the beginning of an output, where its forced tokens are, and those that must follow."""

    thought: Thought
    forced: range
    lacking: tuple[int, ...]


@dataclass(slots=True)
class Thought:
    """The thought of one output."""

    budget: ThinkingBudget
    num_left: int  # tokens that the answer may still have
    is_open: bool = False
    is_over: bool = False
    num_used: int = 0
    _ids: list[int] = field(default_factory=list)  # since the output or its thought began

    @property
    def room(self) -> int:
        """How many tokens may be drawn before the budget or the answer's limit is used up."""
        return self.budget.num_tokens - self.num_used if self.is_open else self.num_left

    def add(self, token: int) -> None:
        """Count a token that was drawn."""
        if self.is_over:
            self.num_left -= 1
            return
        self._ids.append(token)
        if self.is_open:
            self.is_over = _ends_with(self._ids, self.budget.end_ids)
            self.is_open = not self.is_over
            self.num_used += 1
        else:
            self.num_left -= 1
            if self.budget.start_ids and _ends_with(self._ids, self.budget.start_ids):
                self.is_open, self._ids = True, []

    def cut(self) -> tuple[int, ...]:
        """Where the budget is used up, end the thought and return the tokens of its end that it lacks; () otherwise."""
        if not self.is_open or self.num_used < self.budget.num_tokens:
            return ()
        self.is_open, self.is_over = False, True
        forced = self.budget.forced_ids
        begun = (size for size in range(len(forced) - 1, 0, -1) if _ends_with(self._ids, forced[:size]))
        return forced[next(begun, 0) :]

    def copy(self) -> Thought:
        return replace(self, _ids=list(self._ids))


def _ends_with(ids: Sequence[int], part: Sequence[int]) -> bool:
    return tuple(ids[-len(part) :]) == tuple(part)
