"""What an engine is asked for, and coroutines of requests: work that asks for several things in a row.

A coroutine is a generator that yields `Request`, `ScoreRequest` and `UsageQuery`, and is sent the answer to each. It
has one row of the engine to itself from its first request to its end: with `reuse`, later requests find the caches of
earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from specexp.decoding.protocol import Role
from specexp.decoding.rng import Rng
from specexp.engine.context import Context
from specexp.engine.ending import PLAIN, Ending
from specexp.engine.request_state import Decoder, RequestState
from specexp.engine.suffix_automaton import SuffixAutomaton
from specexp.errors import PromptError
from specexp.lm.model import Array

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to decode: answered with its `Generation`.

    `on_tokens` gets the tokens of each round once they are final, cut at its end or the limit; its time does
    not count. `name` is the prompt's, for error messages. Suffix decoding continues what occurred in `earlier`, too.
    """

    decoder: Decoder
    prompt_ids: Sequence[int]
    max_new_tokens: int
    rng: Rng
    on_tokens: Callable[[Sequence[int]], object] | None = None
    name: str = ""
    earlier: SuffixAutomaton | None = None
    ending: Ending = PLAIN


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask what a model scores after `ids` and after each of `tokens`[N]: (logits[N + 1, V], hidden[N + 1, H] or
    None).

    With `drafted`, a draft that reads the target's states has those of `ids` alone, as if it had drafted `tokens`; to
    other models, drafted tokens and committed ones are the same.
    """

    role: Role
    ids: Sequence[int]
    tokens: Sequence[int]
    hidden: bool = False
    drafted: bool = False


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Ask for all that a row was ever fed, prefill included: `{"target_calls": ..., "target_positions": ..., ...}`."""


RequestCoroutine = Generator[Request | ScoreRequest | UsageQuery, Any, T]


def single_request(request: Request | ScoreRequest) -> RequestCoroutine[Any]:
    """The coroutine of a single request."""
    answer = yield request
    return answer


def output_limit(prompt_ids: Sequence[int], max_new_tokens: int, context: int, role: Role = "target") -> int:
    """Return how many tokens can be emitted after this prompt: `max_new_tokens`, or what the model's context leaves.

    Raises PromptError if the prompt is empty or does not fit the context.
    """
    if not prompt_ids:
        raise PromptError("the prompt is empty; it must have at least one token.")
    if len(prompt_ids) >= context:
        raise PromptError(
            f"the prompt has {len(prompt_ids)} tokens, but the {role} model's context is {context};"
            f" shorten it to at most {context - 1} tokens."
        )
    return min(max_new_tokens, context - len(prompt_ids))


class PendingScore:
    """A score request in progress; the engine answers its `ask` by `send`, as for a `RequestState`."""

    def __init__(self, ask: ScoreRequest, context: Context) -> None:
        self.ask: ScoreRequest | None = ask
        self.context = context
        self.out: tuple[Array, Array | None]

    def send(self, answer: tuple[Array, Array | None]) -> None:
        self.ask, self.out = None, answer


class RunningCoroutine(Generic[T]):
    """A coroutine on its row, and what it waits for."""

    def __init__(self, row: int, index: int, coroutine: RequestCoroutine[T]) -> None:
        self.row, self.index, self.coroutine = row, index, coroutine
        self.now: RequestState | PendingScore | None = None
        self.result: Any = None
