"""One output of a served request: what is asked of the engine, what came of it, and its end before its time.

A request has a choice for each of its prompts and each of its `n` outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from specexp.engine import Generation, Request
from specexp.engine.ending import StopFinder, StopRule
from specexp.pair.stop_strings import StopStrings
from specexp.serving.log_probabilities import ScoredToken
from specexp.serving.openai_requests import TextRequest
from specexp.serving.refusals import Refusal, of_failure


@dataclass(frozen=True, slots=True)
class Answered:
    """What the engine made: the output, and the scores of its tokens where they are asked for.

    With `echo`, those of the prompt come first, from its second token on.
    """

    out: Generation
    scores: Sequence[ScoredToken] = ()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Choice:
    """One output. `hear` gets it with the tokens of each round, and at its end with None, in another thread.

    Nothing that it holds may hold it: tensors of what has ended would wait for a garbage collection.
    """

    index: int
    wanted: TextRequest
    request: Request
    stop: StopStrings | None
    hear: Callable[[Choice, Sequence[int] | None], object] = lambda choice, tokens: None
    cancelled: bool = False
    failure: Refusal | None = None  # why it was cut off
    future: Future[Answered] | None = None
    arrived: float = field(default_factory=time.perf_counter)
    began: float | None = None
    first: float | None = None  # when its first tokens came

    def decoded(self) -> Request:
        """What the engine is asked for: the request, with its tokens passed on, and ended once it is cancelled."""
        ending = replace(self.request.ending, stop=CancellableStop(lambda: self.cancelled, self.stop))
        return replace(self.request, on_tokens=self.on_tokens, ending=ending)

    def on_tokens(self, tokens: Sequence[int]) -> None:
        """Pass on the tokens of a round; called in the thread that decodes."""
        if self.first is None:
            self.first = time.perf_counter()
        if not self.cancelled:
            self.hear(self, tokens)

    def cancel(self, why: Refusal | None = None) -> None:
        """End it: at once while it waits, else with the next tokens."""
        self.cancelled, self.failure = True, self.failure or why
        if self.future is not None:
            self.future.cancel()
        if why is not None:
            self.hear(self, None)

    def result(self) -> Answered:
        """What came of it, once it has ended. Raises Refusal."""
        if self.failure is not None:
            raise self.failure
        assert self.future is not None, "it was never begun"
        try:
            return self.future.result(timeout=0)
        except BaseException as error:
            raise of_failure(error) from error


@dataclass(frozen=True, slots=True)
class CancellableStop:
    """Ends an output at its stop strings, and as soon as its choice is cancelled."""

    is_cancelled: Callable[[], bool]
    stop: StopRule | None

    def begin(self, prompt_ids: Sequence[int]) -> StopFinder:
        return _CancellableFinder(self.is_cancelled, None if self.stop is None else self.stop.begin(prompt_ids))


@dataclass(frozen=True, slots=True)
class _CancellableFinder:
    is_cancelled: Callable[[], bool]
    finder: StopFinder | None

    def add(self, token: int) -> bool:
        return self.is_cancelled() or (self.finder is not None and self.finder.add(token))
