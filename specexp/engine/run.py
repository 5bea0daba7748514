"""One decoder on one prompt: what it asked last, what it committed, and its counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from specexp.decoding.asks import Array, Ask, Role, Round, Steps
from specexp.decoding.dice import Dice
from specexp.engine.context import Context
from specexp.engine.recall import Ngrams


class Decoder(Protocol):
    """A decoding method: the models it asks, and its generator of asks."""

    @property
    def models(self) -> tuple[Role, ...]: ...

    def steps(self, dice: Dice, room: int) -> Steps: ...


@dataclass(slots=True)
class Generation:
    """What one run emitted, and its counts. Prefill is in `prefill_seconds` alone, never in the counts.

    Of prompts that were decoded together, `seconds` holds each one's share of every step: they add up to the whole.
    """

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


class Run:
    """The state of one run; the engine answers `ask` by `send`, until it is None."""

    def __init__(
        self,
        decoder: Decoder,
        ids: list[int],
        dice: Dice,
        room: int,
        told: Callable[[Sequence[int]], object] | None = None,
    ) -> None:
        self.decoder, self.ids, self.dice, self.room = decoder, ids, dice, room
        self._told, self._num_told = told, 0
        self.num_prompt = len(ids)
        self.contexts: dict[Role, Context] = {}
        self.ngrams: Ngrams | None = None  # of this sequence, for who asks what it says itself
        self.out = Generation()
        self.began = 0.0
        self.ask: Any = None

    def start(self) -> None:
        self._steps = self.decoder.steps(self.dice, self.room)
        self.ask = next(self._steps, None)

    def send(self, answer: Any) -> None:
        try:
            self.ask = self._steps.send(answer)
        except StopIteration:
            self.ask = None

    def tell(self) -> None:
        """Give away what was committed since the last time."""
        if self._told is not None and (new := self.out.token_ids[self._num_told :]):
            self._num_told += len(new)
            self._told(new)

    def fed(self, role: Role, positions: int) -> None:
        """Count a call."""
        if role == "target":
            self.out.num_target_calls += 1
            self.out.num_target_positions += positions
        else:
            self.out.num_draft_calls += 1
            self.out.num_draft_positions += positions

    def commit(self, ask: Round, values: Iterator[list[float]], eos: Collection[int]) -> int:
        """Take over what a round committed, as it was read from `parts_of(ask)`; the room left."""
        out = self.out
        block, num_tokens = [int(t) for t in next(values)], int(next(values)[0])
        slots = {role: _slots(kept, next(values)) for role, kept in ask.kept.items()}
        counts = {name: next(values) for name in ask.counts}
        tokens = self._cut(block[:num_tokens], eos)
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
        # The rule was asked about the accepted tokens and the first rejected one. Behind an EOS they are no part of the
        # sequence: alpha leaves them out.
        num_tested = min(num_accepted + 1, num_drafted, num_kept)
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
            name: int(values[0]) if is_number(ask.counts[name]) else [int(v) for v in values if v >= 0]
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

    def _cut(self, tokens: list[int], eos: Collection[int]) -> list[int]:
        tokens = tokens[: self.room]
        for i, token in enumerate(tokens):
            if token in eos:
                self.out.finish_reason = "stop"
                return tokens[: i + 1]
        return tokens


def parts_of(ask: Ask) -> list[Array | int]:
    """What a round says, in the order in which `Run.commit` takes it."""
    assert isinstance(ask, Round)
    return [ask.tokens, ask.num_tokens, *ask.kept.values(), *ask.counts.values()]


def is_number(value: Array | int | float) -> bool:
    return isinstance(value, int | float) or not value.shape


def _slots(kept: Array | int, values: list[float]) -> list[int] | range:
    """Slots in the order of the committed tokens: the first n of them, or those of a list without its padding."""
    if is_number(kept):
        return range(int(values[0]))
    return [int(slot) for slot in values if slot >= 0]
