"""Rounds that a target's recording makes together with its forward, of one request or several.

What a decoder would do with the target's scores (draw, test what was drafted, walk a tree) is a pure function of arrays
(`Decision`). Where the session can, it is recorded behind the forward, with all that the host reads of the round as
one array: no operation is launched between the forward and the read. Of a request that is decoded alone, nothing is
allocated either.

The first rounds of a kind are made without a recording: what happens rarely, such as a short chain before the output's
limit, is not worth one, and what functions prepare when they first run must not be recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from array_api_compat import array_namespace

from specexp.decoding.protocol import Decision, Drafted, GrownTree, Role, Round, Score, Scored, Trial
from specexp.decoding.rng import ArrayRng, CertainRng, HashRng, Rng
from specexp.engine.context import Context
from specexp.engine.host_transfer import HostTransfer
from specexp.engine.request_state import LogitPeaks, RequestState, is_number
from specexp.lm.device_rounds import FeedsThroughTogether, Then
from specexp.lm.model import Array, Feed, Model

OFTEN = 8  # a kind of round is recorded when it comes for the eighth time: recording takes as long as some rounds
MOST_SEEN = 4096  # kinds that are remembered: a server's clients may choose any temperature


class RecordedRounds:
    """Answers asks whose trials can be recorded: those of a model together, by one replay and one read."""

    def __init__(self, models: Mapping[Role, Model], transfer: HostTransfer) -> None:
        self._transfer = transfer
        self._together: dict[Role, FeedsThroughTogether] = {
            role: model for role, model in models.items() if isinstance(model, FeedsThroughTogether)
        }
        self._seen: Counter[Hashable] = Counter()

    def score(self, asked: Sequence[tuple[RequestState, Score]]) -> list[Scored] | None:
        """The answers to asks of one model, with their rounds but without logits; None if this is not recorded."""
        state, ask = asked[0]
        context, together = state.contexts[ask.model], self._together.get(ask.model)
        alone = len(asked) == 1 and context.takes_through(ask)
        sessions = [state.contexts[ask.model].session for state, ask in asked]
        most = max(state.contexts[ask.model].num_fed(ask) for state, ask in asked)
        if not alone and (together is None or ask.tree or not together.takes_together(sessions, most)):
            return None
        trials = [_OpenTrial.of(state, ask) for state, ask in asked]
        recorded = [each for each in trials if each is not None]
        if len(recorded) < len(asked) or len({each.trial.decision for each in recorded}) > 1:
            return None
        recorded = _padded(recorded)
        kinds = {each.kind for each in recorded}
        if len(kinds) > 1:
            return None
        one, kind = recorded[0], (len(sessions), *kinds.pop())
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen[kind] += 1
        if self._seen[kind] < OFTEN:
            return None
        if alone:
            packed, then = one.feed_through()
        else:
            assert together is not None
            feeds = [each.feed() for each in recorded]
            packed, then = together.feed_through(feeds, one.then, [each.given for each in recorded])
        assert isinstance(then, RecordedDecision)
        (values,) = self._transfer.read([packed])
        size = len(values) // len(recorded)
        return [each.answer(then.layout, values[i * size :][:size]) for i, each in enumerate(recorded)]


@dataclass(frozen=True, slots=True)
class _OpenTrial:
    """A trial that may be recorded: of what was proposed, which `parts` the function is given, and what is `watched`.

    With `padded_to`, these have so many drafts, of which the last ones are padding.
    """

    state: RequestState
    ask: Score
    trial: Trial
    parts: Mapping[str, Array]
    watched: Sequence[Array]
    padded_to: int | None = None

    @classmethod
    def of(cls, state: RequestState, ask: Score) -> _OpenTrial | None:
        """None unless the ask begins a round that is decided by a pure function of arrays."""
        trial = ask.trial
        if trial is None or ask.parents is not None or ask.row_metadata or not state.contexts[ask.model].begins_round:
            return None
        plain = isinstance(trial.rng, CertainRng) or type(trial.rng) is HashRng
        if not (plain and trial.decision.recordable) or state.end.banned(len(state.ids) - state.num_prompt):
            return None
        arrays = {name: getattr(trial.proposed, name) for name in trial.decision.reads}
        parts = {name: each for name, each in arrays.items() if each is not None}
        return cls(state, ask, trial, parts, state.watched())

    @property
    def context(self) -> Context:
        return self.state.contexts[self.ask.model]

    @property
    def num_drafted(self) -> int:
        return self.trial.proposed.tokens.shape[0] if isinstance(self.trial.proposed, Drafted) else 0

    def is_shorter(self, longest: _OpenTrial) -> bool:
        """True if it has what the longest of several has, of fewer drafts; or no drafts."""
        same = self.parts.keys() == longest.parts.keys() and len(self.watched) == len(longest.watched)
        return same if self.num_drafted else not self.watched

    @property
    def then(self) -> RecordedDecision:
        """The function that is recorded."""
        draws, drafts = isinstance(self.trial.rng, HashRng), isinstance(self.trial.proposed, Drafted)
        depth = None if self.ask.tree is None else self.ask.tree.depth
        return RecordedDecision(
            self.trial.decision, draws, drafts, self.padded_to is not None, tuple(self.parts), depth
        )

    @property
    def given(self) -> list[Array | int]:
        """What the function is given."""
        seeds = self.trial.rng.key if isinstance(self.trial.rng, HashRng) else ()
        num = [] if self.padded_to is None else [self.num_drafted]
        return [self.trial.position, *seeds, *num, *self.parts.values(), *self.watched]

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What those have in common that one recording takes."""
        shapes = (None if isinstance(each, int) else each.shape for each in self.given)
        num = self.num_drafted if self.padded_to is None else self.padded_to
        return (self.ask.model, self.then, self.ask.hidden, self.context.num_unfed, num, *shapes)

    def feed_through(self) -> tuple[Array, Then]:
        """Feed it alone, and count that."""
        ask = self.ask
        if ask.tree is not None:
            self.state.unsized[ask.model] = self.context.num_unfed
            return self.context.feed_tree_through(ask.tree, ask.hidden, self.then, self.given)
        self.state.fed(ask.model, self.context.num_fed(ask))
        return self.context.feed_through(ask.tokens, ask.hidden, self.then, self.given)

    def feed(self) -> Feed:
        """The feed of it among others, counted."""
        self.state.fed(self.ask.model, self.context.num_fed(self.ask))
        return self.context.plan(self.ask.tokens, None, self.ask.hidden)

    def answer(self, layout: Layout, values: list[float]) -> Scored:
        made, (peaks, *watched) = layout.read(values)
        lengths = [each.shape[0] for each in self.state.watched()]  # without padding
        self.state.was_read([each[:length] for each, length in zip(watched, lengths, strict=False)])
        self.state.peaks.append(LogitPeaks(self.ask.model, peaks))
        return Scored(None, round=replace(made, source=getattr(self.trial.proposed, "source", "")))


def _padded(trials: list[_OpenTrial]) -> list[_OpenTrial]:
    """Trials of drafts, as long as the longest of them where their decisions take padding."""
    longest = max(trials, key=lambda each: each.num_drafted, default=None)
    if longest is None or len({each.num_drafted for each in trials}) < 2:
        return trials
    if not all(each.trial.decision.takes_padding and each.is_shorter(longest) for each in trials):
        return trials

    def filled(like: Array, own: Array | None) -> Array:
        """An array of the longest one's shape."""
        xp = array_namespace(like)
        if own is None or not own.shape[0]:
            return xp.zeros_like(like)
        return xp.concat([own, xp.zeros_like(like[own.shape[0] :])])

    return [
        replace(
            each,
            parts={name: filled(like, each.parts.get(name)) for name, like in longest.parts.items()},
            watched=[filled(like, own) for like, own in zip_longest(longest.watched, each.watched)],
            padded_to=longest.num_drafted,
        )
        for each in trials
    ]


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A decision as a function of arrays (`specexp.lm.device_rounds.Then`): its round's values, one after the other.

    It is given `parts` of what was proposed, which has `drafts`, perhaps padded, or is a tree of this `depth`. `layout`
    is where the values are, known once the function has run.
    """

    decision: Decision
    draws: bool
    drafts: bool
    padded: bool
    parts: tuple[str, ...]
    depth: int | None
    layout: Layout = field(default_factory=lambda: Layout(), compare=False)

    def __call__(self, tokens: Array, logits: Array, hidden: Array | None, *given: Array) -> Array:
        """Given position[1], two seeds[1] if it draws, a number of drafts[1] if they are padded, the parts, and further
        values to be read."""
        rng: Rng = CertainRng()
        position, *others = given
        if self.draws:
            rng, others = ArrayRng((others[0], others[1])), others[2:]
        num, others = (others[0], others[1:]) if self.padded else (None, others)
        parts, watched = dict(zip(self.parts, others, strict=False)), others[len(self.parts) :]
        proposed: Drafted | GrownTree | None = None
        if self.depth is not None:
            table = parts["table"]
            proposed = GrownTree(table, table, table, parts["counts"], table, table, self.depth)
        elif self.drafts:
            proposed = Drafted(tokens, parts.get("q"), parts.get("hidden"), num_drafted=num)
        scored = Scored(logits, hidden, row_metadata=parts.get("table"))
        peaks = array_namespace(logits).max(logits, axis=-1)
        return self.layout.pack(self.decision(scored, proposed, rng, position), [peaks, *watched])


@dataclass(frozen=True, slots=True)
class _Number:
    """A number among the values."""

    place: int


class Layout:
    """Where the values of a round, and others that are read with it, are in one array."""

    def __init__(self) -> None:
        self._round: Round | None = None
        self._others: list[Array] = []  # slices

    def pack(self, made: Round, others: Sequence[Array]) -> Array:
        """All values as float64 [P], and this layout as theirs."""
        parts: dict[int, Array] = {}  # an array that is named several times is there once
        places: dict[int, slice | _Number] = {}
        end = 0

        def place(value: Array | int) -> Array | int:
            nonlocal end
            if isinstance(value, int | float):
                return value
            if id(value) not in places:
                size = 1 if is_number(value) else value.shape[0]
                places[id(value)] = _Number(end) if is_number(value) else slice(end, end + size)
                parts[id(value)], end = value, end + size
            return places[id(value)]

        self._round = _mapped(made, place)
        self._others = [place(each) for each in others]
        xp = array_namespace(others[0])
        return xp.concat([xp.reshape(xp.astype(part, xp.float64), (-1,)) for part in parts.values()])

    def read(self, values: list[float]) -> tuple[Round, list[Array]]:
        """The round with values on the host, and the others."""
        assert self._round is not None, "nothing was packed"

        def value(at: Array | int) -> Array | int:
            if isinstance(at, slice):
                return values[at]
            return values[at.place] if isinstance(at, _Number) else at

        return _mapped(self._round, value), [value(at) for at in self._others]


def _mapped(made: Round, function: Callable[[Array | int], Array | int]) -> Round:
    """The round with function(values) in place of its values."""
    return Round(
        function(made.tokens), function(made.num_tokens), {role: function(kept) for role, kept in made.kept.items()},
        {name: function(count) for name, count in made.counts.items()}, made.source, made.reads_all,
    )  # fmt: skip
