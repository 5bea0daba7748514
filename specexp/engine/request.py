"""What an engine is asked for, and procedures that ask for several things in a row.

A procedure is a generator that yields `Request`, `ScoreRequest` and `UsageQuery`, and is sent what came of each. It has
one row of the engine to itself from its first wish to its end: with `reuse`, its later wishes find its earlier ones'
caches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from specexp.decoding.protocol import Role
from specexp.decoding.rng import Rng
from specexp.engine.context import Context
from specexp.engine.run import Decoder, Run
from specexp.lm.model import Array

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to decode: answered with its `Generation`.

    `told` is given the tokens of each round as they are final, cut at an EOS and the limit; clocks stand still for it.
    `name` is the prompt's, for error messages.
    """

    decoder: Decoder
    prompt_ids: Sequence[int]
    max_new_tokens: int
    rng: Rng
    on_tokens: Callable[[Sequence[int]], object] | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What a model thinks after `ids` and after each of `tokens`[N]: (logits[N + 1, V], hidden[N + 1, H] or None)."""

    role: Role
    ids: Sequence[int]
    tokens: Sequence[int]
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """All that a row was ever fed, prefill included: `{"target_calls": ..., "target_positions": ..., ...}`."""


RequestCoroutine = Generator[Request | ScoreRequest | UsageQuery, Any, T]


def single_request(request: Request | ScoreRequest) -> RequestCoroutine[Any]:
    """The procedure of a single wish."""
    answer = yield request
    return answer


class PendingScore:
    """A look that is under way; the engine answers `ask` by `send`, as a run's."""

    def __init__(self, ask: ScoreRequest, context: Context) -> None:
        self.ask: ScoreRequest | None = ask
        self.context = context
        self.out: tuple[Array, Array | None]

    def send(self, answer: tuple[Array, Array | None]) -> None:
        self.ask, self.out = None, answer


class Task(Generic[T]):
    """A procedure on its row, and what it waits for."""

    def __init__(self, row: int, index: int, procedure: RequestCoroutine[T]) -> None:
        self.row, self.index, self.procedure = row, index, procedure
        self.now: Run | PendingScore | None = None
        self.result: Any = None
