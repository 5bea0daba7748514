"""Drives decoders over models: answers what they ask, owns caches, trimming, stopping, counting and timing.

It knows no method. Prompts are decoded one at a time, or several together: whatever asks are open at a time and of one
kind are answered by one forward, each row at its own length. Every round is read to the host once for all rows, each
ask for the best tokens once, and one value a draft step where a draft may stop early. Whoever decodes several things in
a row, the later ones depending on the earlier, is a procedure (`request.py`) on a row of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from array_api_compat import array_namespace, device, to_device

from specexp.decoding.protocol import Depth, Draft, Drafted, Recall, Role, Round, Score, Scored
from specexp.decoding.rng import DRAFT, Rng, pick_each
from specexp.decoding.rules import Warp, best
from specexp.engine.context import Context
from specexp.engine.ngram_lookup import Ngrams, continuation
from specexp.engine.request import (
    PendingScore,
    Request,
    RequestCoroutine,
    ScoreRequest,
    Task,
    UsageQuery,
    single_request,
)
from specexp.engine.run import Decoder, Generation, Peaks, Run, is_number, parts_of
from specexp.errors import PromptError
from specexp.lm.model import Array, Drafts, Model

_SOFT = Warp(1.0)
# What is answered first: drafts before verifying calls, so that rows which began at different times come together.
_ORDER: dict[type, int] = {Depth: 0, Recall: 0, Draft: 1, Score: 2, Round: 4}
_SLACK = 32  # slots beyond a sequence's longest: drafted tokens that are not committed


T = TypeVar("T")


class Engine:
    """Runs decoders on a target and, where they need one, a draft, `rows` prompts at a time.

    `cached=False` feeds the whole sequence at every ask: slow, and the measure of what a cache may not change.
    `reuse=True` keeps what a cache holds between runs and reuses the longest common prefix. `clock` is read in seconds.
    """

    def __init__(
        self,
        models: Mapping[Role, Model],
        eos_ids: Sequence[int] = (),
        *,
        cached: bool = True,
        reuse: bool = False,
        rows: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models = models
        self._eos = frozenset(eos_ids)
        self._cached = cached
        self._reuse = reuse
        self._rows = rows
        self._clock = clock
        self._contexts: dict[Role, list[Context]] = {}
        draft: object = models.get("draft") if rows == 1 and cached else None
        self._drafts = draft if isinstance(draft, Drafts) else None
        self.num_host_reads = 0

    @cached_property
    def _nothing(self) -> Array:
        """No token, where the target is and verifying happens."""
        return self._models["target"].ids([])

    def room_for(self, prompt_ids: Sequence[int], max_new_tokens: int, role: Role = "target") -> int:
        """Tokens that can be emitted behind this prompt: `max_new_tokens`, or what the model's context leaves."""
        context = self._models[role].context
        if not prompt_ids:
            raise PromptError("the prompt is empty; it must have at least one token.")
        if len(prompt_ids) >= context:
            raise PromptError(
                f"the prompt has {len(prompt_ids)} tokens, but the {role} model's context is {context};"
                f" shorten it to at most {context - 1} tokens."
            )
        return min(max_new_tokens, context - len(prompt_ids))

    def generate(
        self,
        decoder: Decoder,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        rng: Rng,
        told: Callable[[Sequence[int]], object] | None = None,
        name: str = "",
    ) -> Generation:
        """Decode one prompt until an EOS or the limit; `told` is given the tokens of each round as they are final.

        Raises ModelError where logits are NaN or infinite, naming the model, the prompt by `name`, and the position.
        """
        request = Request(decoder, prompt_ids, max_new_tokens, rng, told, name)
        out: Generation
        ((_, out),) = self.run_all([single_request(request)], fresh=False)
        return out

    def generate_all(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """Decode prompts, `rows` at a time: (place among `requests`, what came of it), each as soon as it is done.

        A row that is done goes on with the next prompt. The answers are those of `generate`. While rows are free,
        `requests` is asked for more behind every step: one that has nothing now may have something later.
        """
        return self.run_all(map(single_request, requests))  # which asks again where a generator would have ended

    def look(
        self, role: Role, ids: Sequence[int], tokens: Sequence[int], hidden: bool = False
    ) -> tuple[Array, Array | None]:
        """What a model thinks after `ids` and after each of `tokens`[N]: logits[N + 1, V], hidden[N + 1, H].

        With `reuse`, only what the cache does not hold is fed, and all but the last token stay in it.
        """
        found: tuple[Array, Array | None]
        ((_, found),) = self.run_all([single_request(ScoreRequest(role, ids, tokens, hidden))], fresh=False)
        return found

    def run_all(self, procedures: Iterable[RequestCoroutine[T]], fresh: bool = True) -> Iterator[tuple[int, T]]:
        """Run procedures, `rows` at a time: (place among them, what it returned), each as soon as it is done.

        With `fresh` each begins with empty caches, so that what it spends does not depend on who had its row before;
        `reuse` is then within a procedure.
        """
        waiting = enumerate(procedures)
        free = list(range(self._rows))
        tasks: list[Task[T]] = []
        while True:
            while free and (following := next(waiting, None)) is not None:
                tasks.append(Task(free.pop(0), *following))
                for contexts in self._contexts.values() if fresh and self._reuse else ():
                    contexts[tasks[-1].row].forget()
                self._resume(tasks[-1], None)
            if not tasks:
                return
            active = [task.now for task in tasks if task.now is not None]
            self._advance_timed(active)
            for each in active:
                if isinstance(each, Run):
                    each.tell()
            for task in [task for task in tasks if task.now is None or task.now.ask is None]:
                if task.now is not None:
                    self._resume(task, task.now.out)
                if task.now is None:
                    tasks.remove(task)
                    free.append(task.row)
                    yield task.index, task.result

    def _resume(self, task: Task[T], answer: Any) -> None:
        """Go on with a procedure up to the next wish that takes a forward, or to its end."""
        while True:
            try:
                request = task.procedure.send(answer)
            except StopIteration as end:
                task.now, task.result = None, end.value
                return
            if isinstance(request, UsageQuery):
                answer = self.spent(task.row)
                continue
            task.now = self._begin(task.row, request) if isinstance(request, Request) else self._open(task.row, request)
            if task.now.ask is not None:
                return
            answer = task.now.out  # no room for a single token

    def _advance_timed(self, active: Sequence[Run | PendingScore]) -> None:
        if not active:
            return
        start = self._clock()
        self._advance(active)
        runs = [each for each in active if isinstance(each, Run)]
        for model in self._used([run for run in runs if run.ask is None]):
            model.wait()
        share = (self._clock() - start) / len(active)
        for run in runs:
            run.out.seconds += share

    def spent(self, row: int = 0) -> dict[str, int]:
        """All that a row's models were ever fed, prefill included."""
        found = {}
        for role in self._models:
            context = self._contexts[role][row] if role in self._contexts else None
            found[f"{role}_calls"] = context.num_calls if context else 0
            found[f"{role}_positions"] = context.num_positions if context else 0
        return found

    def fingerprint(self) -> object:
        """What the caches hold, for telling two states apart; only models that show their slots have one."""
        return tuple((role, tuple(c.fingerprint() for c in rows)) for role, rows in self._contexts.items())

    def _context(self, role: Role, row: int, length: int) -> Context:
        if role not in self._contexts:
            model = self._models[role]
            sessions = model.sessions(self._rows, length + _SLACK)
            self._contexts[role] = [Context(model, session, self._cached) for session in sessions]
        return self._contexts[role][row]

    def _open(self, row: int, look: ScoreRequest) -> PendingScore:
        context = self._context(look.role, row, len(look.ids) + len(look.tokens))
        context.open(list(look.ids), self._reuse)
        return PendingScore(look, context)

    def _begin(self, row: int, request: Request) -> Run:
        """Prefill, and the first ask."""
        main = request.decoder.models[0]
        room = self.room_for(request.prompt_ids, request.max_new_tokens, main)
        run = Run(request.decoder, list(request.prompt_ids), request.rng, room, request.told, request.name)
        run.out.finish_reason = "length" if room == request.max_new_tokens else "context"
        run.began = self._clock()
        for role in request.decoder.models:
            run.contexts[role] = self._context(role, row, len(run.ids) + room)
            run.contexts[role].open(run.ids, self._reuse)
        for model in self._used([run]):
            model.wait()
        run.out.prefill_seconds = self._clock() - run.began
        run.start()
        return run

    def _used(self, runs: Sequence[Run]) -> list[Model]:
        return [self._models[role] for role in {role: None for run in runs for role in run.decoder.models}]

    def _advance(self, active: Sequence[Run | PendingScore]) -> None:
        """Answer the asks of the first kind that is open, all of them together."""
        looks = [each for each in active if isinstance(each, PendingScore)]
        # Looks wait for each other: for as many as are decoding meanwhile.
        if 2 * len(looks) >= len(active):
            self._look(looks)
            return
        decoding = [each for each in active if isinstance(each, Run)]
        kinds = [_ORDER[type(run.ask)] + (type(run.ask) is Score and run.ask.model == "target") for run in decoding]
        first = min(kinds)
        runs = [run for run, kind in zip(decoding, kinds, strict=True) if kind == first]
        if first == 0:
            answers: Sequence[Any] = [self._host(run) for run in runs]
        elif first == 1:
            # Rows that draft alike; others have their turn next.
            runs = [run for run in runs if _alike(run.ask, runs[0].ask)]
            answers = self._draft(runs)
        elif first == 4:
            answers = self._commit(runs)
        else:
            answers = self._score(runs[0].ask.model, runs)
        for run, answer in zip(runs, answers, strict=True):
            run.send(answer)

    def _look(self, looks: Sequence[PendingScore]) -> None:
        """Answer the looks into one model, the one that most look into, that are about as long as the shortest."""
        asked = [(each, each.ask) for each in looks if each.ask is not None]
        roles = [ask.role for _, ask in asked]
        role = max(roles, key=roles.count)
        least = min(len(ask.tokens) for _, ask in asked if ask.role == role)
        asked = [(each, ask) for each, ask in asked if ask.role == role and len(ask.tokens) <= 2 * least + 1]
        model, feeds = self._models[role], []
        for each, ask in asked:
            feeds.append(each.context.plan(model.ids(ask.tokens) if ask.tokens else None, None, ask.hidden))
        for (each, ask), found in zip(asked, model.feed(feeds), strict=True):
            each.context.commit(list(ask.tokens), range(len(ask.tokens)))
            each.send(found)

    def _host(self, run: Run) -> Drafted | int:
        ask = run.ask
        return self._fitting(run, ask.most, ask.reserve) if isinstance(ask, Depth) else self._recall(run, ask)

    def _score(self, role: Role, runs: Sequence[Run]) -> list[Scored]:
        asks: list[Score] = [run.ask for run in runs]
        slots = [run.contexts[role].num_slots for run in runs]
        beside = [self._beside(role, ask) for ask in asks]
        found = self._feed(role, runs, [(ask.tokens, ask.parents, ask.hidden) for ask in asks])
        ranked = [best(logits, ask.top) if ask.top else None for (logits, _), ask in zip(found, asks, strict=True)]
        flat = []
        for pair in ranked:
            if pair is not None:
                flat += [array_namespace(part).reshape(part, (-1,)) for part in pair]
        values = iter(self._read(flat) if flat else ())
        answers = []
        for run, (logits, states), pair, slot, more in zip(runs, found, ranked, slots, beside, strict=True):
            if pair is None:
                _look_out(run, role, logits)
                answers.append(Scored(logits, states, slot, beside=more))
                continue
            width, scores, tokens = pair[1].shape[1], next(values), next(values)
            starts = range(0, len(scores), width)
            logprob = [scores[i : i + width] for i in starts]
            ids = [[int(token) for token in tokens[i : i + width]] for i in starts]
            if bad := [row[0] for row in logprob if not math.isfinite(row[0])]:
                raise run.not_finite(role, bad[0])
            answers.append(Scored(None, states, slot, logprob, ids, more))
        return answers

    def _beside(self, role: Role, ask: Score) -> Array | None:
        if not ask.beside:
            return None
        flat = self._models[role].ids([value for row in ask.beside for value in row])
        return array_namespace(flat).reshape(flat, (len(ask.beside), -1))

    def _feed(
        self,
        role: Role,
        runs: Sequence[Run],
        wants: Sequence[tuple[Array | Sequence[int] | None, Sequence[int] | None, bool]],
    ) -> list[tuple[Array, Array | None]]:
        """Logits and hidden rows for (tokens, parents, hidden) of each run, from one forward."""
        model, feeds = self._models[role], []
        for run, (tokens, parents, hidden) in zip(runs, wants, strict=True):
            given = model.ids(tokens) if isinstance(tokens, list | tuple) else tokens
            feeds.append(run.contexts[role].plan(given, parents, hidden))
            run.fed(role, feeds[-1].tokens.shape[0])
        return model.feed(feeds)

    def _fitting(self, run: Run, most: int, reserve: int, own: bool = False) -> int:
        """How far the draft may go ahead: `most`, what is left but `reserve`, and what its context holds."""
        fits = self._models["draft"].context - len(run.ids) + (not own)  # the last one is fed only for its row
        return max(0, min(most, run.room - reserve, fits))

    def _recall(self, run: Run, ask: Recall) -> Drafted:
        model = self._models["target"]
        most = max(0, min(ask.gamma, run.room - ask.reserve))
        if ask.text is not None:
            tokens = model.ids(continuation(run.ids, ask.text, most))
        else:
            run.ngrams = run.ngrams or Ngrams(ask.ngram)
            tokens = model.ids(run.ngrams.continuation(run.ids, most))
        xp = array_namespace(tokens)
        vocabulary = xp.arange(model.vocab_size, device=device(tokens))
        return Drafted(tokens, xp.astype(tokens[:, None] == vocabulary[None, :], xp.float32))

    def _draft(self, runs: Sequence[Run]) -> list[Drafted]:
        """The draft's chains, step by step, all rows in one forward a step."""
        ask: Draft = runs[0].ask
        if self._drafts is not None and (whole := self._draft_whole(runs[0], ask)) is not None:
            return [whole]
        chains = [_Chain(run, self._fitting(run, run.ask.gamma, ask.reserve, ask.own)) for run in runs]
        step, greedy = 0, ask.warp.greedy
        while going := [chain for chain in chains if step < chain.length]:
            fed = [(chain.tokens[-1] if chain.tokens else None, None, ask.hidden) for chain in going]
            found = self._feed("draft", [chain.run for chain in going], fed)
            logits = _joined([_last(rows) for rows, _ in found])
            q = logits if greedy else ask.warp(logits)
            peaks = array_namespace(logits).max(logits, axis=-1)
            # A one-hot row needs no draw, and its token says what q is.
            picks = ask.warp.first(logits) if greedy else _draw(going, q, step)
            for i, (chain, (_, states)) in enumerate(zip(going, found, strict=True)):
                chain.tokens.append(_row(picks, i))
                chain.peaks.append(_row(peaks, i))
                if not greedy or ask.min_probability:
                    chain.rows.append(_row(q, i))
                if states is not None:
                    chain.hidden.append(_last(states))
            step += 1
            if ask.min_probability:
                self._stop(ask, [chain for chain in going if step < chain.length])
        if ask.own and (behind := [chain for chain in chains if chain.length]):
            fed = [(chain.tokens[-1], None, True) for chain in behind]
            for chain, (_, states) in zip(behind, self._feed("draft", [c.run for c in behind], fed), strict=True):
                chain.hidden.append(states)
        return [self._drafted(chain, greedy) for chain in chains]

    def _draft_whole(self, run: Run, ask: Draft) -> Drafted | None:
        """The chain in one go, by a model that does it; None if this one does not."""
        model, context = self._drafts, run.contexts["draft"]
        length = self._fitting(run, ask.gamma, ask.reserve, ask.own)
        if model is None or not length or not model.drafts(ask, run.rng):
            return None
        feed = context.plan(None, None, ask.hidden)
        found = model.draft(feed, ask, length, run.rng, len(run.ids) - run.num_prompt)
        context.advance(length - 1 + ask.own)
        for positions in (feed.tokens.shape[0], *[1] * (length - 1 + ask.own)):
            run.fed("draft", positions)
        place = device(self._nothing)
        parts = (found.tokens, found.q, found.hidden, found.peaks)
        whole = Drafted(*(None if part is None else to_device(part, place) for part in parts))
        run.peaks.append(Peaks("draft", whole.peaks, drafts=True))
        return whole

    def _stop(self, ask: Draft, chains: Sequence[_Chain]) -> None:
        """End the chains whose last token the draft gave less than it takes to go on behind it; read to the host."""
        if not chains:
            return
        rows, tokens = _joined([c.rows[-1] for c in chains]), _joined([c.tokens[-1] for c in chains])
        probability = _SOFT(rows) if ask.warp.greedy else rows
        xp = array_namespace(rows)
        (found,) = self._read([xp.take_along_axis(probability, tokens[:, None], axis=-1)[:, 0]])
        for chain, value in zip(chains, found, strict=True):
            if value < ask.min_probability:
                chain.length = len(chain.tokens)

    def _drafted(self, chain: _Chain, greedy: bool) -> Drafted:
        # Verifying happens where the target is.
        place = device(self._nothing)
        if not chain.tokens:
            xp = array_namespace(self._nothing)
            return Drafted(
                self._nothing, xp.zeros((0, self._models["draft"].vocab_size), dtype=xp.float32, device=place)
            )
        chain.run.peaks.append(Peaks("draft", to_device(_joined(chain.peaks), place), drafts=True))
        q = None if greedy else to_device(_joined(chain.rows), place)
        hidden = to_device(_joined(chain.hidden), place) if chain.hidden else None
        return Drafted(to_device(_joined(chain.tokens), place), q, hidden)

    def _commit(self, runs: Sequence[Run]) -> list[int]:
        asked = [part for run in runs for part in parts_of(run.ask)]
        read = self._read([*asked, *(each.values for run in runs for each in run.peaks)])
        values, peaks = iter(read[: len(asked)]), iter(read[len(asked) :])
        rooms = []
        for run in runs:
            rooms.append(run.commit(run.ask, values, peaks, self._eos))
            if run.out.num_rounds == 1:
                run.out.time_to_first_token = self._clock() - run.began
        return rooms

    def _read(self, arrays: Sequence[Array | int | float]) -> list[list[float]]:
        """Values of all arrays, in one transfer. Integers below 2**53 survive float64."""
        # The same array stands for several things: it is read once.
        distinct = {id(a): a for a in arrays if not isinstance(a, int | float)}
        if not distinct:
            return [[a] for a in arrays]
        self.num_host_reads += 1
        values: dict[int, list[float]] = {}
        if str(device(next(iter(distinct.values())))) == "cpu":  # nothing to transfer
            for key, a in distinct.items():
                found = a.tolist()
                values[key] = found if isinstance(found, list) else [found]
            return [[a] if isinstance(a, int | float) else values[id(a)] for a in arrays]
        xp = array_namespace(next(iter(distinct.values())))
        parts = [xp.reshape(xp.astype(a, xp.float64), (-1,)) for a in distinct.values()]
        flat = xp.concat(parts).tolist()
        start = 0
        for key, a in distinct.items():
            size = 1 if is_number(a) else a.shape[0]
            values[key] = flat[start : start + size]
            start += size
        return [[a] if isinstance(a, int | float) else values[id(a)] for a in arrays]


class _Chain:
    """A chain being drafted."""

    __slots__ = ("hidden", "length", "peaks", "rows", "run", "tokens")

    def __init__(self, run: Run, length: int) -> None:
        self.run, self.length = run, length
        self.tokens: list[Array] = []  # [1] each
        self.peaks: list[Array] = []  # [1] each: the largest logit of the row it was drawn from
        self.rows: list[Array] = []  # q [1, V] each; at temperature 0, logits
        self.hidden: list[Array] = []


def _look_out(run: Run, role: Role, logits: Array) -> None:
    """Have the largest of each row of logits[R, V] read with the round: the host is not to wait for it alone."""
    first = run.contexts[role].num_slots + 1 - logits.shape[0]
    run.peaks.append(Peaks(role, array_namespace(logits).max(logits, axis=-1), first))


def _alike(one: Draft, other: Draft) -> bool:
    return (one.warp, one.reserve, one.hidden, one.own, one.min_probability) == (
        other.warp, other.reserve, other.hidden, other.own, other.min_probability
    )  # fmt: skip


def _draw(chains: Sequence[_Chain], q: Array, step: int) -> Array:
    """tokens[A], each drawn from its row of q[A, V] by its run's rng."""
    positions = [len(chain.run.ids) - chain.run.num_prompt + step for chain in chains]
    return pick_each([chain.run.rng for chain in chains], q, positions, DRAFT)


def _last(rows: Array) -> Array:
    return rows if rows.shape[0] == 1 else rows[-1:]


def _row(rows: Array, i: int) -> Array:
    return rows if rows.shape[0] == 1 else rows[i : i + 1]


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts)
