"""One decoder on one prompt: what it asked last, what it committed, and its counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from specexp.decoding.protocol import Answer, Array, Ask, Role, Round, Steps
from specexp.decoding.rng import Rng
from specexp.engine.chain_length import ChainLength
from specexp.engine.context import Context
from specexp.engine.ending import End
from specexp.engine.ngram_lookup import Ngrams
from specexp.engine.suffix_automaton import SuffixAutomaton, SuffixIndex
from specexp.errors import ModelError


class Decoder(Protocol):
    """A decoding method: the models it asks, and its generator of asks."""

    @property
    def models(self) -> tuple[Role, ...]: ...

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps: ...


@dataclass(slots=True)
class Generation:
    """What one request emitted, and its counts. Prefill is in `prefill_seconds` alone, never in the counts.

    Of prompts that were decoded together, `seconds` holds each one's share of every step: they add up to the whole.
    """

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"  # or "stop" at an EOS, "stop_string", "context" where it is full
    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0  # before cutting
    num_judged: int = 0
    num_cut: int = 0  # committed tokens dropped after the end, the limit or the end of a thought's budget
    num_forced: int = 0  # tokens that ended a thought whose budget was used up
    num_full: int = 0  # rounds in which every drafted token was accepted
    num_tested: int = 0
    overlap: float = 0.0
    num_target_calls: int = 0
    num_target_positions: int = 0
    num_draft_calls: int = 0
    num_draft_positions: int = 0
    accepted_histogram: list[int] = field(default_factory=list)  # rounds by number of accepted drafts
    # Of chains, without drafts after the output's end or after the limit: rounds by number of drafts, rounds by
    # number of accepted drafts, and how many were accepted by a judge.
    drafted_before_end: list[int] = field(default_factory=list)
    accepted_before_end: list[int] = field(default_factory=list)
    num_judged_before_end: int = 0
    trees: list[dict[str, int | list[int]]] = field(default_factory=list)  # each round's shape, for methods with trees
    proposers: dict[str, dict[str, int]] = field(default_factory=dict)  # counts by proposer, where several take turns
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    time_to_first_token: float = 0.0


@dataclass(frozen=True, slots=True)
class LogitPeaks:
    """The largest logits of some rows: finite unless a row holds NaN or infinity. -inf alone is a masked token.

    `values`[R], an array or a list, are of rows `first`, `first` + 1, ...; row 0 follows the last committed token, row
    i + 1 the token in slot i. With `drafts`, they are of the rows that a chain was drafted from.
    """

    role: Role
    values: Array
    first: int = 0
    drafts: bool = False


class RequestState:
    """The state of one request that is being decoded; the engine answers `ask` by `send`, until it is None."""

    def __init__(
        self,
        decoder: Decoder,
        ids: list[int],
        rng: Rng,
        remaining_tokens: int,
        on_tokens: Callable[[Sequence[int]], object] | None = None,
        name: str = "",
        earlier: SuffixAutomaton | None = None,
        end: End | None = None,
    ) -> None:
        self.decoder, self.ids, self.rng, self.name = decoder, ids, rng, name
        self._on_tokens, self._num_emitted = on_tokens, 0
        self.num_prompt = len(ids)
        self.end = end or End()
        self._left = remaining_tokens
        self.remaining_tokens = self.end.room(remaining_tokens)  # that drafts and the round may have
        self.ended = False  # before its limit
        self.contexts: dict[Role, Context] = {}
        self.ngrams: Ngrams | None = None  # index of this sequence's n-grams, for prompt lookup
        self.suffixes: SuffixIndex | None = None  # and of its substrings, for suffix decoding
        self.earlier = earlier
        self.chain_length: ChainLength | None = None  # for drafts that end where no longer one pays
        self.out = Generation()
        self.began = 0.0
        self.ask: Ask | None = None
        self.peaks: list[LogitPeaks] = []  # of this round's logits
        self.unsized: dict[Role, int] = {}  # tokens fed before a tree whose size only the device knows

    def start(self) -> None:
        self._steps = self.decoder.steps(self.rng, self._left)
        self.ask = next(self._steps, None)

    def send(self, answer: Answer) -> None:
        try:
            self.ask = self._steps.send(answer)
        except StopIteration:
            self.ask = None

    def emit(self) -> None:
        """Pass the tokens committed since the last call to `on_tokens`."""
        if self._on_tokens is not None and (new := self.out.token_ids[self._num_emitted :]):
            self._num_emitted += len(new)
            self._on_tokens(new)

    def fed(self, role: Role, positions: int, calls: int = 1) -> None:
        """Count a call, or several with so many positions in all."""
        if role == "target":
            self.out.num_target_calls += calls
            self.out.num_target_positions += positions
        else:
            self.out.num_draft_calls += calls
            self.out.num_draft_positions += positions

    def commit(self, ask: Round, values: Iterator[list[float]], peaks: Iterator[list[float]]) -> int:
        """Commit a round, read to the host as `parts_of(ask)` and its peaks; return how many tokens may follow: the
        limit less the tokens of the output, which is where a decoder reads its position.

        Raises ModelError where they were drawn from logits that are not finite.
        """
        out = self.out
        block, num_tokens = [int(t) for t in next(values)], int(next(values)[0])
        slots = {role: _slots(kept, next(values)) for role, kept in ask.kept.items()}
        counts = {name: next(values) for name in ask.counts}
        tokens, forced = self._cut(block[:num_tokens])
        self._check([(each, next(peaks)) for each in self.peaks], slots, len(tokens), ask.reads_all)
        out.num_rounds += 1
        out.num_cut += num_tokens - len(tokens)
        out.token_ids += tokens
        if "num_drafted" in counts:
            self._learn(counts, num_tokens, [next(peaks) for _ in self._unread()])
            cut = self.ended or len(tokens) < num_tokens
            self._count_chain(counts, len(tokens), len(tokens) if cut else self.remaining_tokens, ask.source)
        elif "num_nodes" in counts:
            self._count_tree(ask, counts)
        out.token_ids += forced
        out.num_forced += len(forced)
        self.ids += [*tokens, *forced]
        for role, context in self.contexts.items():
            context.commit([*tokens, *forced], slots.get(role, ())[: len(tokens)])
        self._left = 0 if self.ended else self._left - len(tokens) - len(forced)
        self.remaining_tokens = self.end.room(self._left)
        return self._left

    def watched(self) -> list[Array]:
        """What is read to the host with the round besides its own values: the peaks, and what decides later drafts."""
        return [*(each.values for each in self.peaks), *self._unread()]

    def was_read(self, values: Sequence[list[float]]) -> None:
        """Keep the values of `watched` in place of the arrays."""
        self.peaks = [replace(each, values=got) for each, got in zip(self.peaks, values, strict=False)]
        if self.chain_length is not None and (more := values[len(self.peaks) :]):
            self.chain_length.was_read(*more)

    def _unread(self) -> list[Array]:
        return [] if self.chain_length is None else self.chain_length.unread()

    def _learn(self, counts: Mapping[str, list[float]], num_tokens: int, read: Sequence[Sequence[float]]) -> None:
        if self.chain_length is not None:
            num_drafted, num_accepted = int(counts["num_drafted"][0]), int(counts["num_accepted"][0])
            position = len(self.ids) - self.num_prompt
            self.chain_length.commit(position, num_tokens, num_drafted, num_accepted, read)

    def _check(
        self, peaks: Sequence[tuple[LogitPeaks, list[float]]], slots: Mapping[Role, Sequence[int]], num_kept: int,
        all_rows: bool,
    ) -> None:  # fmt: skip
        """Raise ModelError where logits that this round's tokens were drawn from are not finite.

        For a model that scores, those are row 0 and the rows of the kept slots: rows after a rejection do not affect
        the output, unless the rule reads `all_rows`. For drafts, all rows are checked.
        """
        self.peaks = []
        for each, values in peaks:
            rows: Sequence[int] = [0, *(slot + 1 for slot in slots.get(each.role, ()))][:num_kept]
            if all_rows:
                rows = range(each.first, each.first + len(values))
            for place, row in enumerate(range(len(values)) if each.drafts else rows):
                at = row - each.first
                if 0 <= at < len(values) and not math.isfinite(values[at]):
                    raise self.not_finite(each.role, values[at], place)

    def not_finite(self, role: Role, value: float, place: int = 0) -> ModelError:
        """The error of logits after this round's first `place` tokens, the largest of which is `value`."""
        before, word = len(self.ids) + place, "NaN" if math.isnan(value) else "infinite"
        prompt = f"prompt '{self.name}'" if self.name else "the prompt"
        return ModelError(
            f"{prompt}: the {role} model '{self.contexts[role].model_name}' gives {word} logits at position"
            f" {before - self.num_prompt} of the output (after {before} tokens, prompt included). Check its weights;"
            " float16 overflows above 65504, so use dtype bfloat16 or float32 instead."
        )

    def _count_chain(self, counts: Mapping[str, list[float]], num_kept: int, end: int, source: str) -> None:
        """`end` is the number of this round's tokens up to its end or the limit."""
        out = self.out
        num_drafted, num_accepted = int(counts["num_drafted"][0]), int(counts["num_accepted"][0])
        # The rule tested the accepted tokens and the first rejected one. Those after an EOS are not part of the
        # sequence: alpha leaves them out.
        num_tested = min(num_accepted + 1, num_drafted, num_kept)
        out.num_drafted += num_drafted
        out.num_accepted += num_accepted
        out.num_full += num_drafted > 0 and num_accepted == num_drafted
        judged = [int(value) for value in counts["judged"]]
        out.num_judged += sum(judged)
        out.num_judged_before_end += sum(judged[:end])
        out.num_tested += num_tested
        out.overlap += sum(counts["overlap"][:num_tested])
        _count(out.accepted_histogram, num_accepted)
        _count(out.drafted_before_end, min(num_drafted, end))
        _count(out.accepted_before_end, min(num_accepted, end))
        if source:
            each = out.proposers.setdefault(source, {"num_rounds": 0, "num_drafted": 0, "num_accepted": 0})
            each["num_rounds"] += 1
            each["num_drafted"] += min(num_drafted, end)
            each["num_accepted"] += min(num_accepted, end)

    def _count_tree(self, ask: Round, counts: Mapping[str, list[float]]) -> None:
        out = self.out
        shape: dict[str, int | list[int]] = {
            name: int(values[0]) if is_number(ask.counts[name]) else [int(v) for v in values if v >= 0]
            for name, values in counts.items()
        }
        num_accepted = int(counts["num_accepted"][0])
        out.num_drafted += int(counts["num_nodes"][0])
        out.num_accepted += num_accepted
        out.num_judged += sum(value > 0 for value in counts.get("judged", ()))
        out.trees.append(shape)
        nodes, expanded, calls = (int(counts[name][0]) for name in ("num_nodes", "num_expanded", "num_draft_calls"))
        for role, before in self.unsized.items():
            fed = (before + nodes, 1) if role == "target" else (before + expanded - 1, calls)
            self.fed(role, *fed)
            self.contexts[role].count(*fed)
        self.unsized = {}
        _count(out.accepted_histogram, num_accepted)

    def _cut(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """The round's tokens up to the end, and those that end its thought, if that has used its budget."""
        tokens = tokens[: self._left]
        for i, token in enumerate(tokens):
            if self._ends(token):
                return tokens[: i + 1], []
            if forced := self.end.cut():
                return tokens[: i + 1], self._forced(forced[: self._left - i - 1])
        return tokens, []

    def _forced(self, tokens: Sequence[int]) -> list[int]:
        for i, token in enumerate(tokens):
            if self._ends(token, forced=True):
                return list(tokens[: i + 1])
        return list(tokens)

    def _ends(self, token: int, forced: bool = False) -> bool:
        """Add a token; true if the output ends with it before its limit."""
        if reason := self.end.at(token, forced):
            self.out.finish_reason, self.ended = reason, True
        return self.ended


def _count(histogram: list[int], value: int) -> None:
    """Count one more of this value."""
    histogram += [0] * (value + 1 - len(histogram))
    histogram[value] += 1


def parts_of(ask: Round) -> list[Array | int]:
    """The values of a round, in the order in which `RequestState.commit` reads them."""
    return [ask.tokens, ask.num_tokens, *ask.kept.values(), *ask.counts.values()]


def is_number(value: Array | float) -> bool:
    return isinstance(value, int | float) or not (isinstance(value, list) or value.shape)


def _slots(kept: Array | int, values: list[float]) -> list[int] | range:
    """Slots in the order of the committed tokens: the first n of them, or those of a list without its padding."""
    if is_number(kept):
        return range(int(values[0]))
    return [int(slot) for slot in values if slot >= 0]
