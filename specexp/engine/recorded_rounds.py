"""Rounds that a target's recording makes together with its forward, of one request or several.

What a decoder would do with the target's scores (draw, test what was drafted, walk a tree) is a pure function of arrays
(`Decision`). Where the session can, it is recorded behind the forward, with all that the host reads of the round as
one array: no operation is launched between the forward and the read. Of a request that is decoded alone, nothing is
allocated either.

The first round of a kind is made without a recording: what happens once, such as a short chain before the output's
limit, is not worth one, and what functions prepare when they first run must not be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from array_api_compat import array_namespace

from specexp.decoding.protocol import Decision, Drafted, GrownTree, Role, Round, Score, Scored, Trial
from specexp.decoding.rng import ArrayRng, CertainRng, HashRng, Rng
from specexp.engine.context import Context
from specexp.engine.host_transfer import HostTransfer
from specexp.engine.request_state import LogitPeaks, RequestState, is_number
from specexp.lm.device_rounds import FeedsThroughTogether, Then
from specexp.lm.model import Array, Feed, Model

ROWS = ("q", "hidden")  # arrays of a `Drafted` that decisions may read, besides its tokens


class RecordedRounds:
    """Answers asks whose trials can be recorded: those of a model together, by one replay and one read."""

    def __init__(self, models: Mapping[Role, Model], transfer: HostTransfer) -> None:
        self._transfer = transfer
        self._together: dict[Role, FeedsThroughTogether] = {
            role: model for role, model in models.items() if isinstance(model, FeedsThroughTogether)
        }
        self._seen: set[Hashable] = set()

    def score(self, asked: Sequence[tuple[RequestState, Score]]) -> list[Scored] | None:
        """The answers to asks of one model, with their rounds but without logits; None if this is not recorded."""
        trials = [_Recorded.of(state, ask) for state, ask in asked]
        recorded = [each for each in trials if each is not None]
        if len(recorded) < len(asked) or len({each.kind for each in recorded}) > 1:
            return None
        one, together = recorded[0], self._together.get(recorded[0].ask.model)
        alone = len(asked) == 1 and one.context.takes_through(one.ask)
        sessions = [each.context.session for each in recorded]
        if not alone and (together is None or one.ask.tree or not together.takes_together(sessions, one.num_tokens)):
            return None
        kind = (len(sessions), *one.kind)
        if kind not in self._seen:
            self._seen.add(kind)
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
class _Recorded:
    """An ask whose trial may be recorded: its function, and what that is given."""

    state: RequestState
    ask: Score
    then: RecordedDecision
    given: list[Array | int]

    @classmethod
    def of(cls, state: RequestState, ask: Score) -> _Recorded | None:
        """None unless the ask begins a round that is decided by a pure function of arrays."""
        trial = ask.trial
        if trial is None or ask.parents is not None or ask.row_metadata or not state.contexts[ask.model].begins_round:
            return None
        plain = isinstance(trial.rng, CertainRng) or type(trial.rng) is HashRng
        if not (plain and trial.decision.recordable) or state.end.banned(len(state.ids) - state.num_prompt):
            return None
        then, proposed = _function(trial)
        seeds = trial.rng.key if isinstance(trial.rng, HashRng) else ()
        return cls(state, ask, then, [trial.position, *seeds, *proposed, *state.watched()])

    @property
    def context(self) -> Context:
        return self.state.contexts[self.ask.model]

    @property
    def num_tokens(self) -> int:
        """That are fed."""
        return self.context.num_unfed + (0 if self.ask.tokens is None else len(self.ask.tokens))

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What those have in common that one recording takes."""
        shapes = (None if isinstance(each, int) else each.shape for each in self.given)
        return (self.ask.model, self.then, self.ask.hidden, self.num_tokens, *shapes)

    def feed_through(self) -> tuple[Array, Then]:
        """Feed it alone, and count that."""
        ask, num, unfed = self.ask, self.num_tokens, self.context.num_unfed
        if ask.tree is not None:
            self.state.unsized[ask.model] = unfed
            return self.context.feed_tree_through(ask.tree, ask.hidden, self.then, self.given)
        self.state.fed(ask.model, num)
        return self.context.feed_through(ask.tokens, ask.hidden, self.then, self.given)

    def feed(self) -> Feed:
        """The feed of it among others, counted."""
        self.state.fed(self.ask.model, self.num_tokens)
        return self.context.plan(self.ask.tokens, None, self.ask.hidden)

    def answer(self, layout: Layout, values: list[float]) -> Scored:
        made, (peaks, *watched) = layout.read(values)
        self.state.was_read(watched)
        self.state.peaks.append(LogitPeaks(self.ask.model, peaks))
        return Scored(None, round=made)


def _function(trial: Trial) -> tuple[RecordedDecision, list[Array]]:
    """The function that is recorded, and the arrays that it is given of what was proposed."""
    proposed, draws = trial.proposed, isinstance(trial.rng, HashRng)
    if isinstance(proposed, GrownTree):
        return RecordedDecision(trial.decision, draws, depth=proposed.depth), [proposed.table, proposed.counts]
    if proposed is None:
        return RecordedDecision(trial.decision, draws), []
    assert isinstance(proposed, Drafted), "only drafts and trees are proposed"
    arrays = {name: each for name in ROWS if (each := getattr(proposed, name)) is not None}
    return RecordedDecision(trial.decision, draws, tuple(arrays), proposed.source), [*arrays.values()]


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A decision as a function of arrays (`specexp.lm.device_rounds.Then`): its round's values, one after the other.

    `rows` are the arrays of a `Drafted` that are given, None for other proposals; a tree has a `depth`. `layout` is
    where the values are, known once the function has run.
    """

    decision: Decision
    draws: bool
    rows: tuple[str, ...] | None = None
    source: str = ""
    depth: int | None = None
    layout: Layout = field(default_factory=lambda: Layout(), compare=False)

    def __call__(self, tokens: Array, logits: Array, hidden: Array | None, *given: Array) -> Array:
        """Given position[1], two seeds[1] if it draws, what was proposed, and further values to be read."""
        rng: Rng = CertainRng()
        position, *others = given
        if self.draws:
            rng, others = ArrayRng((others[0], others[1])), others[2:]
        proposed: Drafted | GrownTree | None = None
        table = None
        if self.depth is not None:
            table, counts, *others = others
            proposed = GrownTree(table, table, table, counts, table, table, self.depth)
        elif self.rows is not None:
            named = dict(zip(self.rows, others, strict=False))
            proposed = Drafted(tokens, named.get("q"), named.get("hidden"), source=self.source)
            others = others[len(named) :]
        scored = Scored(logits, hidden, row_metadata=table)
        peaks = array_namespace(logits).max(logits, axis=-1)
        return self.layout.pack(self.decision(scored, proposed, rng, position), [peaks, *others])


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
