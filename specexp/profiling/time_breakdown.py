"""Where a decoder's time goes: draft forwards, target forwards, judge, sampling and accepting, and the host (the rest).

It is measured in an instrumented run, separate from the timed ones. Wrappers implement the interfaces (models'
sessions, the decoder's generator, its rule, rng and warps) and do not depend on the implementations. All time from the
first request to the last round is charged to one part, so that the shares sum to 1; the cost of the clock itself is
measured and subtracted.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from specexp.decoding.chain import Chain, Rule
from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted, Needs, Role, Scored, Steps
from specexp.decoding.rng import Rng
from specexp.decoding.rules import Warp
from specexp.engine import Decoder
from specexp.lm.model import Array, Branches, Drafts, Feed, Follower, Following, Model, Session, one_by_one

HOST, SAMPLING, JUDGE = "host", "sampling", "judge"
PARTS = ("draft", "target", JUDGE, SAMPLING, HOST)
CALIBRATION = 2000  # number of empty regions in the measurement of the clock's own cost

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Charges time to the innermost open region. It calls `wait`, which synchronizes the device, before the clock."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, wait: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._wait = wait
        self._open: list[str] = []
        self._mark = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._num_opened: Counter[str] = Counter()
        self._num_inside: Counter[str] = Counter()  # regions opened directly inside one

    def begin(self) -> None:
        """Start charging time: to the host, unless another region is open."""
        self._wait()
        self._open = [HOST]
        self._num_opened[HOST] += 1
        self._mark = self._clock()

    def end(self) -> None:
        self._charge()
        self._open = []

    def timed(self, name: str, work: Callable[P, R]) -> Callable[P, R]:
        """Wrap `work` so that its time is charged to `name` between `begin` and `end`."""

        def run(*arguments: P.args, **more: P.kwargs) -> R:
            if not self._open:
                return work(*arguments, **more)
            self._charge()
            self._num_inside[self._open[-1]] += 1
            self._num_opened[name] += 1
            self._open.append(name)
            try:
                return work(*arguments, **more)
            finally:
                self._charge()
                self._open.pop()

        return run

    def _charge(self) -> None:
        self._wait()
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._mark
        self._mark = now

    def num_opened(self, name: str) -> int:
        """How often this region was entered."""
        return self._num_opened[name]

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, minus the cost of opening and closing regions."""
        empty = Stopwatch(self._clock, self._wait)
        nothing = empty.timed(SAMPLING, lambda: None)
        empty.begin()
        for _ in range(CALIBRATION):
            nothing()
        empty.end()
        own = empty._seconds[SAMPLING] / CALIBRATION
        around = (empty._seconds[HOST] - own) / CALIBRATION
        return {
            part: max(0.0, self._seconds[part] - own * self._num_opened[part] - around * self._num_inside[part])
            for part in PARTS
        }


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each part's seconds / their sum."""
    whole = sum(seconds.values())
    return {part: value / whole for part, value in seconds.items()}


class TimedModel:
    """Forwards all calls to a model; the time of its sessions is charged to its role."""

    def __init__(self, model: Model, role: Role, watch: Stopwatch) -> None:
        self._model, self._role, self._watch = model, role, watch

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def context(self) -> int:
        return self._model.context

    def sessions(self, count: int, capacity: int = 0) -> list[TimedSession]:
        return [TimedSession(each, self._role, self._watch) for each in self._model.sessions(count, capacity)]

    def session(self) -> TimedSession:
        return self.sessions(1)[0]

    @property
    def follows(self) -> bool:
        return isinstance(self._model, Follower) and self._model.follows

    def sessions_beside(self, leaders: Sequence[Session]) -> list[TimedSession] | None:
        assert isinstance(self._model, Follower), "the model has no slots of another one"
        inner = [leader.inner for leader in leaders if isinstance(leader, TimedSession)]
        beside = self._model.sessions_beside(inner)
        return None if beside is None else [TimedSession(each, self._role, self._watch) for each in beside]

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        return one_by_one(feeds)

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        return isinstance(self._model, Drafts) and self._model.drafts(ask, rng)

    def draft(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None = None
    ) -> Drafted:
        assert isinstance(self._model, Drafts), "the model does not draft whole chains"
        assert isinstance(feed.session, TimedSession), "a session of another model"
        inner = replace(feed, session=feed.session.inner)
        return self._watch.timed(self._role, self._model.draft)(inner, ask, length, rng, position, stopping)

    def ids(self, tokens: Sequence[int]) -> Array:
        return self._model.ids(tokens)

    def check_trees(self) -> object:
        return self._model.check_trees()

    def facts(self) -> dict[str, Any]:
        return self._model.facts()

    def wait(self) -> None:
        self._model.wait()


class TimedSession:
    """Forwards all calls to a session; `feed` and `truncate` are charged to the role of its model."""

    def __init__(self, session: Session, role: Role, watch: Stopwatch) -> None:
        self.inner = session
        self._feed = watch.timed(role, session.feed)
        self._truncate = watch.timed(role, session.truncate)
        # A draft that reads or writes text in its own tokens; trees on the device.
        for name in ("told", "write", "takes_tree", "grow", "feed_tree"):
            if hasattr(session, name):
                setattr(self, name, watch.timed(role, getattr(session, name)))

    def follow(self, leader: Session) -> None:
        assert isinstance(self.inner, Following), "the session is in no other one's slots"
        assert isinstance(leader, TimedSession), "a session of another model"
        self.inner.follow(leader.inner)

    @property
    def room(self) -> int:
        return self.inner.room  # type: ignore[attr-defined, no-any-return]

    @property
    def length(self) -> int:
        return self.inner.length

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        return self._feed(tokens, rows, hidden, branches)

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        self._truncate(length, slots)

    def slots(self) -> object:
        return self.inner.slots()


class TimedRng:
    """An rng whose draws are charged to sampling: for the engine, which samples the drafts itself."""

    def __init__(self, rng: Rng, watch: Stopwatch) -> None:
        self._pick = watch.timed(SAMPLING, rng.pick)
        self._sample_next = watch.timed(SAMPLING, rng.sample_next)
        self._accept_prefix = watch.timed(SAMPLING, rng.accept_prefix)
        self._accept_longest = watch.timed(SAMPLING, rng.accept_longest)
        self._target_draws = watch.timed(SAMPLING, rng.target_draws)
        self._rng, self._watch = rng, watch

    def pick(self, weights: Array, position: int, purpose: int) -> Array:
        return self._pick(weights, position, purpose)

    def sample_next(self, weights: Array, position: int, num_accepted: Array, num_drafted: int) -> Array:
        return self._sample_next(weights, position, num_accepted, num_drafted)

    def accept_prefix(self, prob: Array, accepted_anyway: Array | None, position: int) -> tuple[Array, Array]:
        return self._accept_prefix(prob, accepted_anyway, position)

    def accept_longest(self, prob: Array, position: int) -> Array:
        return self._accept_longest(prob, position)

    def target_draws(self, weights: Array, position: int) -> Array:
        return self._target_draws(weights, position)

    def of_round(self, start: Array | int) -> Rng:
        return TimedRng(self._rng.of_round(start), self._watch)


@dataclass(frozen=True, slots=True)
class TimedWarp(Warp):
    """A warp that is charged to sampling; the engine samples drafts with it."""

    watch: Stopwatch | None = None

    def __call__(self, logits: Array) -> Array:
        assert self.watch is not None, "a warp without its watch"
        return self.watch.timed(SAMPLING, Warp.__call__)(self, logits)

    def first(self, logits: Array) -> Array:
        assert self.watch is not None, "a warp without its watch"
        return self.watch.timed(SAMPLING, Warp.first)(self, logits)


class TimedRule:
    """A rule whose verdicts are charged to the judge."""

    def __init__(self, rule: Rule, watch: Stopwatch) -> None:
        self._rule = rule
        self._accept_anyway = watch.timed(JUDGE, rule.accept_anyway)

    @property
    def needs(self) -> Needs:
        return self._rule.needs

    @property
    def recordable(self) -> bool:
        return False  # a recording has no clock

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        return self._accept_anyway(drafted, scored)


class TimedDecoder:
    """A decoder whose steps are charged to sampling, and its rule's verdicts to the judge."""

    def __init__(self, decoder: Decoder, watch: Stopwatch) -> None:
        if isinstance(decoder, Chain):
            decoder = replace(decoder, rule=TimedRule(decoder.rule, watch))
        self._decoder, self._watch = decoder, watch

    @property
    def models(self) -> tuple[Role, ...]:
        return self._decoder.models

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        # The engine requests the first step after the prefill, which is therefore charged to no part.
        self._watch.begin()
        step = self._watch.timed(SAMPLING, self._decoder.steps(rng, remaining_tokens).send)
        answer: Any = None
        while True:
            try:
                ask = step(answer)
            except StopIteration:
                self._watch.end()
                return
            if isinstance(ask, Draft):
                warp = ask.warp
                ask = replace(ask, warp=TimedWarp(warp.temperature, warp.top_k, warp.top_p, self._watch))
            answer = yield ask
