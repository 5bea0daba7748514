"""The exhaustive oracle: the exact output distribution of a decoder, from a replay of every outcome its rng can have.

It runs the real engine over models with real caches; only the rng is replaced, by one that follows a script of choices
and lists the alternatives. Paths are merged where they reach the same state at a round boundary: the same committed
tokens and the same cache contents. It is feasible for tiny vocabularies and a few tokens only.

It also asserts that no key is drawn twice in a round, and none whose position is already committed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from array_api_compat import array_namespace

from specexp.decoding.protocol import Role, Round, Steps
from specexp.decoding.rng import ACCEPT, RESIDUAL, TARGET, Array, Rng
from specexp.engine import Decoder, Ending, Engine
from specexp.engine.ending import PLAIN

Distribution = dict[tuple[int, ...], float]


def output_distribution(
    make_engine: Callable[[], Engine], decoder: Decoder, prompt: Sequence[int], max_new_tokens: int,
    ending: Ending = PLAIN,
) -> Distribution:  # fmt: skip
    """Probability of every output (token ids, EOS included) of `decoder` on `prompt`."""
    outputs: Distribution = defaultdict(float)
    frontier: dict[object, tuple[float, list[int]]] = {"start": (1.0, [])}
    rounds = 0
    while frontier:
        rounds += 1
        assert rounds <= ending.most(max_new_tokens), "a decoder must commit at least one token a round"
        reached: dict[object, tuple[float, list[int]]] = {}
        for mass, script in frontier.values():
            for leaf in _rounds(make_engine, decoder, prompt, max_new_tokens, script, rounds, ending):
                if leaf.finished:
                    outputs[leaf.tokens] += mass * leaf.prob
                else:
                    before, kept = reached.get(leaf.state, (0.0, leaf.script))
                    reached[leaf.state] = (before + mass * leaf.prob, kept)
        frontier = reached
    return dict(outputs)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """The end of one path through a round."""

    prob: float
    script: list[int]
    tokens: tuple[int, ...]
    state: object
    finished: bool


def _rounds(
    make_engine: Callable[[], Engine],
    decoder: Decoder,
    prompt: Sequence[int],
    limit: int,
    script: list[int],
    rounds: int,
    ending: Ending,
) -> Iterator[_Leaf]:
    """Every path through round number `rounds`; the earlier rounds follow `script`."""
    todo = [list(script)]
    while todo:
        rng = _ScriptedRng(todo.pop())
        watched = _Watched(decoder, rng, rounds)
        engine = make_engine()
        out = engine.generate(watched, prompt, limit, rng, ending=ending)
        prob = 1.0
        for made in rng.made[len(script) :]:
            prob *= made.probs[made.chosen]
        path = [made.chosen for made in rng.made]
        state = (tuple(out.token_ids), watched.remaining_tokens, engine.fingerprint())
        yield _Leaf(prob, path, tuple(out.token_ids), state, watched.remaining_tokens == 0)
        for at in range(len(rng.script), len(rng.made)):
            todo += [[*path[:at], other] for other in range(1, len(rng.made[at].probs))]


@dataclass(slots=True)
class _Watched:
    """The decoder, stopped after a number of rounds; it tells the rng when a round ends."""

    decoder: Decoder
    rng: _ScriptedRng
    rounds: int
    remaining_tokens: int = -1

    @property
    def models(self) -> tuple[Role, ...]:
        return self.decoder.models

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        inner = self.decoder.steps(rng, remaining_tokens)
        limit, answer = remaining_tokens, None
        while True:
            try:
                ask = inner.send(answer)
            except StopIteration:
                return
            answer = yield ask
            if isinstance(ask, Round):
                self.remaining_tokens = int(answer)
                self.rounds -= 1
                self.rng.next_round(limit - self.remaining_tokens)
                if self.rounds == 0:
                    return


@dataclass(frozen=True, slots=True)
class _Choice:
    chosen: int
    probs: list[float]


@dataclass(slots=True)
class _ScriptedRng:
    """An rng that follows the script, then always takes the first possible outcome; it records all alternatives."""

    script: list[int]
    made: list[_Choice] = field(default_factory=list)
    committed: int = 0
    drawn: set[tuple[int, int]] = field(default_factory=set)

    def next_round(self, committed: int) -> None:
        self.committed = committed
        self.drawn.clear()

    def pick(self, weights: Array, position: int, purpose: int) -> Array:
        self._use(position, purpose)
        mass = float(weights.sum())
        options = [(i, float(w) / mass) for i, w in enumerate(weights) if w > 0]
        return self._choose(array_namespace(weights), options)

    def sample_next(self, weights: Array, position: int, num_accepted: Array, num_drafted: int) -> Array:
        purpose = TARGET if int(num_accepted) == num_drafted else RESIDUAL
        return self.pick(weights, position + int(num_accepted), purpose)

    def accept_prefix(self, prob: Array, accepted_anyway: Array | None, position: int) -> tuple[Array, Array]:
        xp = array_namespace(prob)
        options, alive = [], 1.0
        for i, a in enumerate(float(a) for a in prob):
            self._use(position + i, ACCEPT)
            chance = 1.0 if accepted_anyway is not None and accepted_anyway[i] else a
            options.append((i, alive * (1 - chance)))
            alive *= chance
        options.append((prob.shape[0], alive))
        num = self._choose(xp, [(n, chance) for n, chance in options if chance > 0])
        return num, (xp.arange(prob.shape[0]) < num) & (prob > 0)

    def accept_longest(self, prob: Array, position: int) -> Array:
        options, alive = [], 1.0
        for i in reversed(range(prob.shape[0])):
            self._use(position + i, ACCEPT)
            options.append((i + 1, alive * float(prob[i])))
            alive *= 1 - float(prob[i])
        return self._choose(array_namespace(prob), [(n, chance) for n, chance in [*options, (0, alive)] if chance > 0])

    def target_draws(self, weights: Array, position: int) -> Array:
        xp = array_namespace(weights)
        return xp.stack([self.pick(row, position + i, TARGET) for i, row in enumerate(weights)])

    def of_round(self, start: Array | int) -> Rng:
        assert int(start) == self.committed, f"a round begins at {self.committed}, not at {int(start)}"
        return self

    def _use(self, position: int, purpose: int) -> None:
        assert (position, purpose) not in self.drawn, f"key {(position, purpose)} drawn twice in a round"
        assert position >= self.committed, f"key {(position, purpose)} drawn for a committed position"
        self.drawn.add((position, purpose))

    def _choose(self, xp: Any, options: list[tuple[int, float]]) -> Array:
        at = len(self.made)
        chosen = self.script[at] if at < len(self.script) else 0
        self.made.append(_Choice(chosen, [prob for _, prob in options]))
        return xp.asarray(options[chosen][0])
