"""Drives a decoder over models: answers what it asks, owns caches, trimming, stopping, counting and timing.

It knows no method. One prompt at a time; reads each round to the host once, each ask for the best tokens, and one value
a draft step where a draft may stop early.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from array_api_compat import array_namespace, device, to_device

from specexp.decoding.asks import Ask, Depth, Draft, Drafted, Recall, Role, Round, Score, Scored, Steps
from specexp.decoding.dice import DRAFT, Dice
from specexp.decoding.rules import Warp, best
from specexp.engine.context import Context
from specexp.engine.recall import Ngrams, continuation
from specexp.errors import PromptError
from specexp.lm.model import Array, Model

_SOFT = Warp(1.0)  # what a draft thinks of a token, where its own warp is one-hot


class Decoder(Protocol):
    """A decoding method: the models it asks, and its generator of asks."""

    @property
    def models(self) -> tuple[Role, ...]: ...

    def steps(self, dice: Dice, room: int) -> Steps: ...


@dataclass(slots=True)
class Generation:
    """What one run emitted, and its counts. Prefill is in `prefill_seconds` alone, never in the counts."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"  # "stop" at an EOS, then the last token; "context" where the model's context ends
    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0  # before cutting
    num_judged: int = 0
    num_cut: int = 0  # committed tokens dropped behind an EOS or the limit
    num_full: int = 0  # rounds in which every drafted token was accepted
    num_tested: int = 0
    overlap: float = 0.0
    num_target_calls: int = 0
    num_target_positions: int = 0
    num_draft_calls: int = 0
    num_draft_positions: int = 0
    accepted_histogram: list[int] = field(default_factory=list)  # rounds by number of accepted drafts
    trees: list[dict[str, int | list[int]]] = field(default_factory=list)  # each round's shape, for methods with trees
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    time_to_first_token: float = 0.0


class Engine:
    """Runs decoders on a target and, where they need one, a draft.

    `cached=False` feeds the whole sequence at every ask: slow, and the measure of what a cache may not change.
    `reuse=True` keeps caches between runs and reuses the longest common prefix. `clock` is read in seconds.
    """

    def __init__(
        self,
        models: Mapping[Role, Model],
        eos_ids: Sequence[int] = (),
        *,
        cached: bool = True,
        reuse: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models = models
        self._eos = frozenset(eos_ids)
        self._cached = cached
        self._reuse = reuse
        self._clock = clock
        self._contexts: dict[Role, Context] = {}
        self.num_host_reads = 0

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

    def generate(self, decoder: Decoder, prompt_ids: Sequence[int], max_new_tokens: int, dice: Dice) -> Generation:
        """Decode one prompt until an EOS or the limit."""
        main = decoder.models[0]
        room = self.room_for(prompt_ids, max_new_tokens, main)
        limit = "length" if room == max_new_tokens else "context"
        run = _Run(self, decoder, list(prompt_ids), dice, room, limit)
        return run.finish()

    def look(
        self, role: Role, ids: Sequence[int], tokens: Sequence[int], hidden: bool = False
    ) -> tuple[Array, Array | None]:
        """What a model thinks after `ids` and after each of `tokens`[N]: logits[N + 1, V], hidden[N + 1, H].

        With `reuse`, only what the cache does not hold is fed, and all but the last token stay in it.
        """
        context = self._open(role, list(ids))
        fed = self._models[role].ids(tokens) if tokens else None
        logits, states, _ = context.feed(fed, None, hidden)
        context.commit(list(tokens), range(len(tokens)))
        return logits, states

    def fingerprint(self) -> object:
        """What the caches hold, for telling two states apart; only models that show their slots have one."""
        return tuple((role, context.fingerprint()) for role, context in self._contexts.items())

    def _open(self, role: Role, ids: list[int]) -> Context:
        context = self._contexts.get(role)
        if context is None or not self._reuse:
            context = self._contexts[role] = Context(self._models[role], self._cached)
        context.open(ids)
        return context

    def _read(self, arrays: Sequence[Array | int | float]) -> list[list[float]]:
        """Values of all arrays, in one transfer. Integers below 2**53 survive float64."""
        first = next((a for a in arrays if not isinstance(a, int | float)), None)
        if first is None:
            return [[a] for a in arrays]
        xp = array_namespace(first)
        parts = [xp.reshape(xp.astype(a, xp.float64), (-1,)) for a in arrays if not isinstance(a, int | float)]
        self.num_host_reads += 1
        flat = xp.concat(parts).tolist()
        values: list[list[float]] = []
        for a in arrays:
            if isinstance(a, int | float):
                values.append([a])
            else:
                size = 1 if not a.shape else a.shape[0]
                values.append(flat[:size])
                flat = flat[size:]
        return values


class _Run:
    """One decoder on one prompt."""

    def __init__(self, engine: Engine, decoder: Decoder, ids: list[int], dice: Dice, room: int, limit: str) -> None:
        self.engine, self.decoder, self.ids, self.dice, self.room = engine, decoder, ids, dice, room
        self.num_prompt = len(ids)
        self.ngrams: Ngrams | None = None  # of this sequence, for who asks what it says itself
        self.out = Generation(finish_reason=limit)
        self.place = device(engine._models[decoder.models[0]].ids([]))

    def finish(self) -> Generation:
        engine, out = self.engine, self.out
        clock = engine._clock
        models = [engine._models[role] for role in self.decoder.models]
        start = clock()
        self.contexts = {role: engine._open(role, self.ids) for role in self.decoder.models}
        for model in models:
            model.wait()
        out.prefill_seconds = clock() - start
        steps = self.decoder.steps(self.dice, self.room)
        answer: Any = None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration:
                break
            answer = self._answer(ask)
            if out.num_rounds == 1 and isinstance(ask, Round):
                out.time_to_first_token = clock() - start
        for model in models:
            model.wait()
        out.seconds = clock() - start - out.prefill_seconds
        return out

    def _answer(self, ask: Ask) -> Scored | Drafted | int:
        if isinstance(ask, Score):
            return self._score(ask)
        if isinstance(ask, Draft):
            return self._draft(ask)
        if isinstance(ask, Recall):
            return self._recall(ask)
        if isinstance(ask, Depth):
            return self._fitting(ask.most, ask.reserve)
        return self._commit(ask)

    def _score(self, ask: Score) -> Scored:
        first_slot = self.contexts[ask.model].num_slots
        logits, states = self._feed(ask.model, ask.tokens, ask.hidden, ask.parents)
        if ask.top is None:
            return Scored(logits, states, first_slot)
        xp = array_namespace(logits)
        logprob, ids = best(logits, ask.top)
        width = ids.shape[1]
        scores, tokens = self.engine._read([xp.reshape(logprob, (-1,)), xp.reshape(ids, (-1,))])
        starts = range(0, len(scores), width)
        return Scored(
            None,
            states,
            first_slot,
            [scores[i : i + width] for i in starts],
            [[int(token) for token in tokens[i : i + width]] for i in starts],
        )

    def _feed(
        self, role: Role, tokens: Array | Sequence[int] | None, hidden: bool, parents: Sequence[int] | None = None
    ) -> tuple[Array, Array | None]:
        if isinstance(tokens, Sequence):
            tokens = self.engine._models[role].ids(tokens)
        logits, states, positions = self.contexts[role].feed(tokens, parents, hidden)
        if role == "target":
            self.out.num_target_calls += 1
            self.out.num_target_positions += positions
        else:
            self.out.num_draft_calls += 1
            self.out.num_draft_positions += positions
        return logits, states

    def _fitting(self, most: int, reserve: int, own: bool = False) -> int:
        """How far the draft may go ahead: `most`, what is left but `reserve`, and what its context holds."""
        fits = self.engine._models["draft"].context - len(self.ids) + (not own)  # the last one is fed only for its row
        return max(0, min(most, self.room - reserve, fits))

    def _recall(self, ask: Recall) -> Drafted:
        model = self.engine._models["target"]
        most = max(0, min(ask.gamma, self.room - ask.reserve))
        if ask.text is not None:
            tokens = model.ids(continuation(self.ids, ask.text, most))
        else:
            self.ngrams = self.ngrams or Ngrams(ask.ngram)
            tokens = model.ids(self.ngrams.continuation(self.ids, most))
        xp = array_namespace(tokens)
        vocabulary = xp.arange(model.vocab_size, device=self.place)
        return Drafted(tokens, xp.astype(tokens[:, None] == vocabulary[None, :], xp.float32))

    def _draft(self, ask: Draft) -> Drafted:
        model = self.engine._models["draft"]
        num_drafted = self._fitting(ask.gamma, ask.reserve, ask.own)
        position = len(self.ids) - self.num_prompt
        tokens: list[Array] = []
        rows: list[Array] = []
        hidden: list[Array] = []
        for i in range(num_drafted):
            logits, states = self._feed("draft", tokens[-1][None] if tokens else None, ask.hidden)
            rows.append(ask.warp(logits[-1:]))
            tokens.append(self.dice.pick(rows[-1][0], position + i, DRAFT))
            if states is not None:
                hidden.append(states[-1:])
            if ask.min_probability and i + 1 < num_drafted and self._unlikely(ask, logits[-1:], rows[-1], tokens[-1]):
                break
        if not tokens:
            nothing = self.engine._models["target"].ids([])
            xp = array_namespace(nothing)
            return Drafted(nothing, xp.zeros((0, model.vocab_size), dtype=xp.float32, device=self.place))
        if ask.own:
            _, states = self._feed("draft", tokens[-1][None], True)
            hidden.append(states)
        xp = array_namespace(tokens[0])
        # Verifying happens where the target is.
        found = [xp.stack(tokens), xp.concat(rows), *([xp.concat(hidden)] if hidden else [])]
        return Drafted(*(to_device(array, self.place) for array in found))

    def _unlikely(self, ask: Draft, logits: Array, q: Array, token: Array) -> bool:
        """Whether the draft gave `token` less than it takes to go on behind it; read to the host."""
        probability = _SOFT(logits) if ask.warp.greedy else q
        [[found]] = self.engine._read([array_namespace(q).take(probability[0], token[None])])
        return found < ask.min_probability

    def _commit(self, ask: Round) -> int:
        out, engine = self.out, self.engine
        values = iter(engine._read([ask.tokens, ask.num_tokens, *ask.kept.values(), *ask.counts.values()]))
        block, num_tokens = [int(t) for t in next(values)], int(next(values)[0])
        slots = {role: _slots(kept, next(values)) for role, kept in ask.kept.items()}
        counts = {name: next(values) for name in ask.counts}
        tokens = self._cut(block[:num_tokens])
        out.num_rounds += 1
        out.num_cut += num_tokens - len(tokens)
        out.token_ids += tokens
        if "num_drafted" in counts:
            self._count_chain(counts, len(tokens))
        elif "num_nodes" in counts:
            self._count_tree(ask, counts)
        self.ids += tokens
        for role, context in self.contexts.items():
            context.commit(tokens, slots.get(role, ()))
        self.room = 0 if out.finish_reason == "stop" else self.room - len(tokens)
        return self.room

    def _count_chain(self, counts: Mapping[str, list[float]], num_kept: int) -> None:
        out = self.out
        num_drafted, num_accepted = int(counts["num_drafted"][0]), int(counts["num_accepted"][0])
        # Positions behind an EOS were tested too, but they are no part of the sequence: alpha leaves them out.
        num_tested = min(int(counts["num_tested"][0]), num_kept)
        out.num_drafted += num_drafted
        out.num_accepted += num_accepted
        out.num_full += num_drafted > 0 and num_accepted == num_drafted
        out.num_judged += int(counts["num_judged"][0])
        out.num_tested += num_tested
        out.overlap += sum(counts["overlap"][:num_tested])
        self._count_accepted(num_accepted)

    def _count_tree(self, ask: Round, counts: Mapping[str, list[float]]) -> None:
        out = self.out
        shape: dict[str, int | list[int]] = {
            name: int(values[0]) if _is_number(ask.counts[name]) else [int(v) for v in values if v >= 0]
            for name, values in counts.items()
        }
        num_accepted = int(counts["num_accepted"][0])
        out.num_drafted += int(counts["num_nodes"][0])
        out.num_accepted += num_accepted
        out.trees.append(shape)
        self._count_accepted(num_accepted)

    def _count_accepted(self, num_accepted: int) -> None:
        histogram = self.out.accepted_histogram
        histogram += [0] * (num_accepted + 1 - len(histogram))
        histogram[num_accepted] += 1

    def _cut(self, tokens: list[int]) -> list[int]:
        tokens = tokens[: self.room]
        for i, token in enumerate(tokens):
            if token in self.engine._eos:
                self.out.finish_reason = "stop"
                return tokens[: i + 1]
        return tokens


def _slots(kept: Array | int, values: list[float]) -> Sequence[int]:
    """Slots in the order of the committed tokens: the first n of them, or those of a list without its padding."""
    if _is_number(kept):
        return range(int(values[0]))
    return [int(slot) for slot in values if slot >= 0]


def _is_number(value: Array | int | float) -> bool:
    return isinstance(value, int | float) or not value.shape
