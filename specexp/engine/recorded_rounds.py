"""Rounds that a target's recording makes together with its forward, of a request that is decoded alone.

What a decoder would do with the target's scores (draw, test what was drafted, walk a tree) is a pure function of arrays
(`Decision`). Where the session can, it is recorded behind the forward, with all that the host reads of the round as
one array: no operation is launched between the forward and the read, and nothing is allocated.

The first round of a kind is made without a recording: what happens once, such as a short chain before the output's
limit, is not worth one, and what functions prepare when they first run must not be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from array_api_compat import array_namespace

from specexp.decoding.protocol import Decision, Drafted, GrownTree, Round, Score, Scored, Trial
from specexp.decoding.rng import ArrayRng, CertainRng, HashRng, Rng
from specexp.engine.context import Context
from specexp.engine.host_transfer import HostTransfer
from specexp.engine.request_state import LogitPeaks, RequestState, is_number
from specexp.lm.model import Array

ROWS = ("q", "hidden")  # arrays of a `Drafted` that decisions may read, besides its tokens


class RecordedRounds:
    """Answers asks whose trial can be recorded, each by one replay and one read."""

    def __init__(self, transfer: HostTransfer) -> None:
        self._transfer = transfer
        self._seen: set[Hashable] = set()

    def score(self, state: RequestState, ask: Score) -> Scored | None:
        """The answer to an ask, with its round but without logits; None if this is not recorded."""
        context, trial = state.contexts[ask.model], ask.trial
        if trial is None or not _fits(state, context, ask, trial):
            return None
        watched, rng = state.watched(), trial.rng
        then, given = _recorded(trial, rng)
        kind = (ask.model, then, ask.hidden, *(each.shape for each in (*given, *watched)))
        if kind not in self._seen:
            self._seen.add(kind)
            return None
        numbers = [trial.position, *(rng.key if isinstance(rng, HashRng) else ())]
        if ask.tree is None:
            packed, recorded = context.feed_through(ask.tokens, ask.hidden, then, [*numbers, *given, *watched])
            state.fed(ask.model, context.num_fed)
        else:
            packed, recorded = context.feed_tree_through(ask.tree, ask.hidden, then, [*numbers, *given, *watched])
            state.unsized[ask.model] = context.num_fed
        assert isinstance(recorded, RecordedDecision)
        (values,) = self._transfer.read([packed])
        made, (peaks, *before) = recorded.layout.read(values)
        state.was_read(before)
        state.peaks.append(LogitPeaks(ask.model, peaks))
        return Scored(None, round=made)


def _fits(state: RequestState, context: Context, ask: Score, trial: Trial) -> bool:
    """True if the ask begins a round of a session that can record how it is decided."""
    num = 0 if ask.tokens is None else len(ask.tokens)
    if ask.parents is not None or ask.row_metadata or not context.takes_through(num, ask.tree):
        return False
    plain = isinstance(trial.rng, CertainRng) or type(trial.rng) is HashRng
    return plain and trial.decision.recordable and not state.end.banned(len(state.ids) - state.num_prompt)


def _recorded(trial: Trial, rng: Rng) -> tuple[RecordedDecision, list[Array]]:
    """The function that is recorded, and the arrays that it is given of what was proposed."""
    proposed, draws = trial.proposed, isinstance(rng, HashRng)
    if isinstance(proposed, GrownTree):
        return RecordedDecision(trial.decision, draws, depth=proposed.depth), [proposed.table, proposed.counts]
    if proposed is None:
        return RecordedDecision(trial.decision, draws), []
    assert isinstance(proposed, Drafted), "only drafts and trees are proposed"
    arrays = {name: each for name in ROWS if (each := getattr(proposed, name)) is not None}
    return RecordedDecision(trial.decision, draws, tuple(arrays), proposed.source), [*arrays.values()]


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A decision as a function of arrays (`specexp.lm.model.Then`): the values of its round, one after the other.

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
