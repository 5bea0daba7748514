"""Drives decoders over models: answers their asks, and owns caches, trimming, stopping, counting and timing.

The engine does not depend on the method. It decodes prompts one at a time or several together: one forward answers all
open asks of one phase (`scheduler.py`), each row at its own length. It reads to the host every round once for all rows
(`host_transfer.py`), each ask for the best tokens once, and one value per draft step where a draft may stop early; of
a tree that is grown on the device, the round alone (`device_trees.py`). Work in which later prompts depend on earlier
outputs is a coroutine of requests (`request.py`), which keeps one row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from specexp.decoding.protocol import Answer, Draft, Drafted, GrownTree, GrowTree, Recall, Role, Round, Score
from specexp.decoding.rng import Rng
from specexp.engine.context import Context
from specexp.engine.device_trees import DeviceTrees
from specexp.engine.drafting import Drafting
from specexp.engine.ending import PLAIN, End, Ending
from specexp.engine.forwards import score, score_pending
from specexp.engine.host_transfer import HostTransfer
from specexp.engine.recorded_rounds import RecordedRounds
from specexp.engine.request import (
    PendingScore,
    Request,
    RequestCoroutine,
    RunningCoroutine,
    ScoreRequest,
    UsageQuery,
    output_limit,
    single_request,
)
from specexp.engine.request_state import Decoder, Generation, RequestState, parts_of
from specexp.engine.scheduler import Phase, next_phase, with_asks
from specexp.lm.model import Array, Follower, Model, Session, StateReader

_SLACK = 32  # extra slots per sequence, for drafted tokens that are not committed


T = TypeVar("T")


class Engine:
    """Runs decoders on a target and, where they need one, a draft, `max_batch_size` prompts at a time.

    `cached=False` feeds the whole sequence at every ask: slow, and the reference for cached decoding.
    `reuse=True` keeps the caches between requests and reuses the longest common prefix. Score requests wait for others
    of their kind, `score_patience` steps at most, if it is given. `clock` returns seconds.
    """

    def __init__(
        self,
        models: Mapping[Role, Model],
        eos_ids: Sequence[int] = (),
        *,
        cached: bool = True,
        reuse: bool = False,
        max_batch_size: int = 1,
        score_patience: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models = models
        self._eos = frozenset(eos_ids)
        self._cached = cached
        self._reuse = reuse
        self._max_batch_size = max_batch_size
        self._score_patience, self._num_waits = score_patience, 0
        self._clock = clock
        self._contexts: dict[Role, list[Context]] = {}
        self._begun: dict[int, RequestState] = {}  # the latest of each row
        self._transfer = HostTransfer()
        alone = max_batch_size == 1 and cached
        self._drafting = Drafting(models, self._transfer, whole=cached, alone=alone)
        self._trees, self._recorded = DeviceTrees(models, alone), RecordedRounds(models, self._transfer)

    @property
    def num_host_reads(self) -> int:
        """How often the host waited for values of the device."""
        return self._transfer.num_reads

    def output_limit(self, prompt_ids: Sequence[int], max_new_tokens: int, role: Role = "target") -> int:
        """Return how many tokens can be emitted after this prompt. Raises PromptError as `request.output_limit`."""
        return output_limit(prompt_ids, max_new_tokens, self._models[role].context, role)

    def generate(
        self,
        decoder: Decoder,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        rng: Rng,
        on_tokens: Callable[[Sequence[int]], object] | None = None,
        name: str = "",
        ending: Ending = PLAIN,
    ) -> Generation:
        """Decode one prompt until its end or the limit; `on_tokens` is given each round's tokens once final.

        Raises ModelError where logits are NaN or infinite, naming the model, the prompt by `name`, and the position.
        """
        request = Request(decoder, prompt_ids, max_new_tokens, rng, on_tokens, name, ending=ending)
        out: Generation
        ((_, out),) = self.run_all([single_request(request)], fresh=False)
        return out

    def generate_all(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """Decode prompts, `max_batch_size` at a time: yield (index in `requests`, output), each as soon as it is done.

        A row that is done takes the next prompt. The answers are those of `generate`. While rows are free, `requests`
        is asked for more after every step, even if it has ended before: it may yield again later.
        """
        return self.run_all(map(single_request, requests))  # unlike a generator, `map` asks again after the end

    def score(
        self, role: Role, ids: Sequence[int], tokens: Sequence[int], hidden: bool = False, drafted: bool = False
    ) -> tuple[Array, Array | None]:
        """Return what a model scores after `ids` and after each of `tokens`[N]: logits[N + 1, V], hidden[N + 1, H].

        With `reuse`, only what the cache does not hold is fed, and all but the last token stay in it. `drafted` as of
        `ScoreRequest`.
        """
        answer: tuple[Array, Array | None]
        ((_, answer),) = self.run_all([single_request(ScoreRequest(role, ids, tokens, hidden, drafted))], fresh=False)
        return answer

    def run_all(self, coroutines: Iterable[RequestCoroutine[T]], fresh: bool = True) -> Iterator[tuple[int, T]]:
        """Run request coroutines, `max_batch_size` at a time: yield (index, return value), each as soon as it ends.

        With `fresh` each begins with empty caches, so that its costs do not depend on what its row did before; `reuse`
        then applies within a coroutine only.
        """
        waiting = enumerate(coroutines)
        free = list(range(self._max_batch_size))
        tasks: list[RunningCoroutine[T]] = []
        while True:
            while free and (following := next(waiting, None)) is not None:
                tasks.append(RunningCoroutine(free.pop(0), *following))
                for contexts in self._contexts.values() if fresh and self._reuse else ():
                    contexts[tasks[-1].row].forget()
                self._resume(tasks[-1], None)
            if not tasks:
                return
            active = [task.now for task in tasks if task.now is not None]
            self._advance_timed(active)
            for each in active:
                if isinstance(each, RequestState):
                    each.emit()
            for task in [task for task in tasks if task.now is None or task.now.ask is None]:
                if task.now is not None:
                    self._resume(task, task.now.out)
                if task.now is None:
                    tasks.remove(task)
                    free.append(task.row)
                    yield task.index, task.result

    def _resume(self, task: RunningCoroutine[T], answer: Any) -> None:
        """Resume a coroutine up to its next request that takes a forward, or to its end."""
        while True:
            try:
                request = task.coroutine.send(answer)
            except StopIteration as end:
                task.now, task.result = None, end.value
                return
            if isinstance(request, UsageQuery):
                answer = self.spent(task.row)
                continue
            task.now = self._begin(task.row, request) if isinstance(request, Request) else self._open(task.row, request)
            if task.now.ask is not None:
                return
            answer = task.now.out  # not a single token fits

    def _advance_timed(self, active: Sequence[RequestState | PendingScore]) -> None:
        if not active:
            return
        start = self._clock()
        self._advance(active)
        states = [each for each in active if isinstance(each, RequestState)]
        for model in self._used([state for state in states if state.ask is None]):
            model.wait()
        share = (self._clock() - start) / len(active)
        for state in states:
            state.out.seconds += share

    def spent(self, row: int = 0) -> dict[str, int]:
        """All that a row's models were ever fed, prefill included."""
        result = {}
        for role in self._models:
            context = self._contexts[role][row] if role in self._contexts else None
            result[f"{role}_calls"] = context.num_calls if context else 0
            result[f"{role}_positions"] = context.num_positions if context else 0
        return result

    def fingerprint(self) -> object:
        """What the caches hold and what later drafts depend on, to compare two states; needs sessions with `slots`."""
        caches = tuple((role, tuple(c.fingerprint() for c in rows)) for role, rows in self._contexts.items())
        lengths = (state.chain_length for state in self._begun.values())
        return caches, tuple(each.fingerprint() for each in lengths if each is not None)

    def _context(self, role: Role, row: int, length: int) -> Context:
        if role not in self._contexts:
            model = self._models[role]
            beside = self._beside(model, row, length) if role == "draft" else None
            sessions = beside or model.sessions(self._max_batch_size, length + _SLACK)
            reads = role == "draft" and "target" in self._models and isinstance(sessions[0], StateReader)
            if reads:
                self._context("target", row, length)
            leaders = self._contexts["target"] if beside or reads else [None] * len(sessions)
            self._contexts[role] = [
                Context(model, session, self._cached, leader) for session, leader in zip(sessions, leaders, strict=True)
            ]
        return self._contexts[role][row]

    def _beside(self, model: Model, row: int, length: int) -> Sequence[Session] | None:
        """The draft's sessions in the target's slots, if it can have them: not where caches outlive requests."""
        if "target" not in self._models or self._reuse or not self._cached or not isinstance(model, Follower):
            return None
        if not model.follows:
            return None
        self._context("target", row, length)
        return model.sessions_beside([context.session for context in self._contexts["target"]])

    def _open(self, row: int, request: ScoreRequest) -> PendingScore:
        context = self._context(request.role, row, len(request.ids) + len(request.tokens))
        context.open(list(request.ids), self._reuse)
        return PendingScore(request, context)

    def _begin(self, row: int, request: Request) -> RequestState:
        """Prefill the prompt and run the decoder to its first ask."""
        main = request.decoder.models[0]
        most = request.ending.most(request.max_new_tokens)
        limit = self.output_limit(request.prompt_ids, most, main)
        state = RequestState(
            request.decoder, list(request.prompt_ids), request.rng, limit, request.on_tokens, request.name,
            request.earlier, End.of(request.ending, self._eos, request.prompt_ids, request.max_new_tokens),
        )  # fmt: skip
        state.out.finish_reason = "length" if limit == most else "context"
        state.began = self._clock()
        for role in sorted(request.decoder.models, reverse=True):  # the target before a draft that follows it
            state.contexts[role] = self._context(role, row, len(state.ids) + limit)
            state.contexts[role].open(state.ids, self._reuse, led="target" in state.contexts)
        for model in self._used([state]):
            model.wait()
        state.out.prefill_seconds = self._clock() - state.began
        self._begun[row] = state
        state.start()
        return state

    def _used(self, states: Sequence[RequestState]) -> list[Model]:
        return [self._models[role] for role in {role: None for state in states for role in state.decoder.models}]

    def _advance(self, active: Sequence[RequestState | PendingScore]) -> None:
        """Answer the asks of the earliest phase that is open, all of them together."""
        pending = [each for each in active if isinstance(each, PendingScore)]
        # Score requests wait until they are at least half of the active rows, so that they share a forward.
        self._num_waits += bool(pending)
        overdue = 0 < self._score_patience <= self._num_waits
        if 2 * len(pending) >= len(active) or (pending and overdue):
            self._num_waits = 0
            score_pending(self._models, pending)
            return
        phase, states = next_phase([each for each in active if isinstance(each, RequestState)])
        for state, answer in zip(states, self._answers(phase, states), strict=True):
            state.send(answer)

    def _answers(self, phase: Phase, states: Sequence[RequestState]) -> Sequence[Answer]:
        match phase:
            case Phase.LENGTH:
                return [self._length(state) for state in states]
            case Phase.DRAFT:
                return self._drafting.draft(with_asks(states, Draft))
            case Phase.COMMIT:
                return self._commit(with_asks(states, Round))
            case _:
                asked = with_asks(states, Score)
                return self._recorded.score(asked) or score(self._models[asked[0][1].model], asked, self._transfer)

    def _length(self, state: RequestState) -> Drafted | GrownTree | int:
        if isinstance(state.ask, GrowTree):
            return self._trees.grow(state, state.ask, self._drafting.depth(state, state.ask))
        assert isinstance(state.ask, Recall)
        return self._drafting.recall(state, state.ask)

    def _commit(self, asked: Sequence[tuple[RequestState, Round]]) -> list[int]:
        parts = [part for _, ask in asked for part in parts_of(ask)]
        more = [x for state, _ in asked for x in state.watched()]
        read = self._transfer.read([*parts, *more])
        values, peaks = iter(read[: len(parts)]), iter(read[len(parts) :])
        left = []
        for state, ask in asked:
            left.append(state.commit(ask, values, peaks))
            if state.out.num_rounds == 1:
                state.out.time_to_first_token = self._clock() - state.began
        return left
