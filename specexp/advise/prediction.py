"""Predicts a method's gain from how often the target agrees with the draft and from what calls cost: arithmetic alone.

Which drafted tokens are accepted does not depend on the draft length: given the output, the token at position i is
accepted, if it is drafted and reached, with probability

    b_i = P(accepted | x_i is emitted) = min(p_i(x_i), q_i(x_i)) / p_i(x_i) = min(1, q_i(x_i) / p_i(x_i)),

independently from position to position. At temperature 0, where both are one-hot, b_i is 1 if the draft's first choice
is the target's, else 0. So one output and its b give the rounds of every draft length: expected ones given this output,
and at temperature 0 the exact rounds of decoding. (The mean of b_i over what may be emitted is the sum_x min(p, q) of
`accept/alpha`; it cannot replace b_i, since what is accepted also decides what follows.)

A looked-up draft is one-hot. At every temperature its b is 1 where it proposes the token that was emitted, and 0
elsewhere: given the output, its rounds are certain. A draft that stops early stops by tokens that it keeps, whose
probabilities the output gives; how far it continues after a token that is then rejected lies off the output, and is
fitted to counted runs (`Stop`).

This module knows no model, no clock and no method. The seconds of a round are those of its calls and an overhead that
is a straight line in the number of drafted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specexp.profiling.call_costs import Costs


@dataclass(frozen=True, slots=True)
class Trace:
    """One output: b of each of its tokens, and what limits a draft.

    `limit` tokens could be emitted after the prompt. There the draft's context has space for a draft of `draft_limit`
    tokens, one less with every token emitted since.
    """

    accepted: Sequence[float]
    limit: int
    draft_limit: int
    certainty: Sequence[float] = ()  # the draft's probability of each token if drafted; for drafts that stop early


@dataclass(frozen=True, slots=True)
class LookupTrace:
    """One output, as looked-up drafts see it: `agreed` has, for a round that starts at each of its tokens, how many
    proposed tokens agree with the output, or None where nothing is found. `limit` as in `Trace`."""

    agreed: Sequence[int | None]
    limit: int


@dataclass(slots=True)
class Rounds:
    """Expected numbers of rounds, over all traces, by the tokens they drafted and by those accepted before the end.

    `by_tail` has the rounds whose draft leaves the output, by the most tokens that it may have off the output.
    """

    tokens: int = 0
    by_drafted: dict[float, float] = field(default_factory=dict)
    by_accepted: dict[int, float] = field(default_factory=dict)
    by_tail: dict[int, float] = field(default_factory=dict)

    @property
    def rounds(self) -> float:
        return math.fsum(self.by_drafted.values())

    @property
    def drafted(self) -> float:
        return math.fsum(number * rounds for number, rounds in self.by_drafted.items())

    @property
    def mean_length(self) -> float:
        """Tokens emitted per verifying target call."""
        return self.tokens / self.rounds


@dataclass(frozen=True, slots=True)
class Stop:
    """A draft ends after a token that it gave less than `least`. Once it has left the output, another token follows
    each token with probability `goes_on`."""

    least: float = 0.0
    goes_on: float = 1.0

    def tail(self, most: int) -> float:
        """Expected tokens off the output, at most `most`."""
        r = self.goes_on
        return float(most) if r == 1 else r * (1 - r**most) / (1 - r)


NEVER = Stop()


def fit_stop(least: float, rounds: Rounds, drafted: float) -> Stop:
    """The stop whose `goes_on` makes these rounds, simulated with `goes_on` 0, draft `drafted` tokens in all."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        tails = math.fsum(weight * Stop(least, middle).tail(most) for most, weight in rounds.by_tail.items())
        low, high = (middle, high) if rounds.drafted + tails < drafted else (low, middle)
    return Stop(least, low)


def chain_rounds(traces: Sequence[Trace], gamma: int, bonus: bool = True, stop: Stop = NEVER) -> Rounds:
    """The rounds of chains of at most `gamma` drafted tokens along these outputs, trimmed as the engine trims them."""
    result = Rounds()
    for trace in traces:
        result.tokens += len(trace.accepted)
        _along(trace, gamma, bonus, stop, result)
    return result


def lookup_rounds(traces: Sequence[LookupTrace], gamma: int, bonus: bool = True) -> Rounds:
    """The rounds of looked-up drafts of `gamma` tokens along these outputs."""
    result = Rounds()
    for trace in traces:
        length, place = len(trace.agreed), 0
        result.tokens += length
        while place < length:
            agreed = trace.agreed[place]
            drafted = 0 if agreed is None else max(0, min(gamma, trace.limit - place - bonus))
            num_accepted = min(agreed or 0, drafted, length - place)
            _add(result.by_drafted, drafted, 1.0)
            _add(result.by_accepted, num_accepted, 1.0)
            place += num_accepted + (1 if bonus or num_accepted < drafted or not drafted else 0)
    return result


def _along(trace: Trace, gamma: int, bonus: bool, stop: Stop, rounds: Rounds) -> None:
    """Add one trace: the probability that a round starts at a place moves on to where the next round starts."""
    length = len(trace.accepted)
    starts = [0.0] * length
    starts[0] = 1.0
    for place, weight in enumerate(starts):
        if not weight:
            continue
        most = max(0, min(gamma, trace.limit - place - bonus, trace.draft_limit - place))
        drafted = most
        if stop.least:
            unsure = (i for i in range(min(most, length - place)) if trace.certainty[place + i] < stop.least)
            drafted = next(unsure, most - 1) + 1
        num_left = min(drafted, length - place)  # after an EOS nothing is emitted
        going = weight
        for num_accepted in range(num_left):
            passed = going * trace.accepted[place + num_accepted]
            _left(rounds, num_accepted + 1, most, stop, going - passed)
            _end(starts, place + num_accepted + 1, rounds, num_accepted, going - passed)
            going = passed
            if not going:
                break
        else:
            _left(rounds, num_left, drafted, stop, going)
            more = bonus or not drafted  # the target's token after a full chain, or a plain step
            _end(starts, place + num_left + more, rounds, num_left, going)


def _left(rounds: Rounds, followed: int, most: int, stop: Stop, weight: float) -> None:
    """Count rounds whose draft followed the output for `followed` tokens, of at most `most`."""
    if weight:
        _add(rounds.by_drafted, followed + stop.tail(most - followed), weight)
        if most > followed:
            _add(rounds.by_tail, most - followed, weight)


def _end(starts: list[float], following: int, rounds: Rounds, num_accepted: int, weight: float) -> None:
    """Of the rounds that start at a place, `weight` end like this, and the next round starts at `following`."""
    if weight:
        _add(rounds.by_accepted, num_accepted, weight)
        if following < len(starts):
            starts[following] += weight


def _add(histogram: dict[Any, float], key: float, weight: float) -> None:
    histogram[key] = histogram.get(key, 0.0) + weight


@dataclass(frozen=True, slots=True)
class TreeRounds:
    """Sums over the rounds of a tree method, counted or interpolated between counted ones."""

    tokens: float
    rounds: float
    nodes: float
    draft_calls: float
    draft_positions: float

    @property
    def mean_length(self) -> float:
        return self.tokens / self.rounds


def tree_between(counted: Mapping[int, TreeRounds], budget: int) -> TreeRounds:
    """A budget's rounds: as counted, or on a straight line in log(budget) between the nearest two; else the nearest's.

    Means of a round are interpolated, and the mean length never falls as the budget grows.
    """
    if budget in counted:
        return counted[budget]
    below = max((n for n in counted if n < budget), default=min(counted))
    above = min((n for n in counted if n > budget), default=max(counted))
    if below >= above:
        return counted[above]
    share = math.log(budget / below) / math.log(above / below)
    one, other = counted[below], counted[above]

    def between(name: str) -> float:
        low, high = (getattr(each, name) / each.rounds for each in (one, other))
        if name == "tokens":
            high = max(low, high)
        return float(low + share * (high - low))

    rounds = one.tokens / between("tokens")
    return TreeRounds(
        one.tokens, rounds, *(rounds * between(name) for name in ("nodes", "draft_calls", "draft_positions"))
    )


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of a round beyond its calls: a straight line in the drafted tokens. Negative where calls in a row cost
    less than calls that are measured one by one."""

    per_round: float = 0.0
    per_drafted: float = 0.0

    def of(self, rounds: float, drafted: float) -> float:
        """Seconds of so many rounds that drafted so many tokens in all."""
        return self.per_round * rounds + self.per_drafted * drafted


def fit_overhead(points: Sequence[tuple[float, float]]) -> Overhead:
    """The least-squares line through (drafted tokens a round, seconds a round beyond its calls); one point: a level."""
    middle = math.fsum(x for x, _ in points) / len(points)
    level = math.fsum(y for _, y in points) / len(points)
    spread = math.fsum((x - middle) ** 2 for x, _ in points)
    if not spread:
        return Overhead(level)
    slope = math.fsum((x - middle) * (y - level) for x, y in points) / spread
    return Overhead(level - slope * middle, slope)


def chain_calls(rounds: Rounds, costs: Costs, feed_last_token: bool = False) -> float:
    """Seconds of the calls of a chain's rounds.

    With `feed_last_token`, the draft makes one more step in each round that drafts.
    """
    assert costs.draft_step is not None, "no draft was measured"
    steps = math.fsum(
        number * (drafted + (feed_last_token and drafted > 0)) for drafted, number in rounds.by_drafted.items()
    )
    return steps * costs.draft_step + verifying_calls(rounds, costs)


def verifying_calls(rounds: Rounds, costs: Costs) -> float:
    """Seconds of the target's calls alone: all of the calls, where drafts are looked up."""
    return math.fsum(number * costs.v(drafted + 1) * costs.target[1] for drafted, number in rounds.by_drafted.items())


def tree_calls(rounds: TreeRounds, costs: Costs) -> float:
    """Seconds of the calls of a tree's rounds, each call at its mean size."""
    plain = costs.target[1]
    draft = rounds.draft_calls * costs.c_tree(rounds.draft_positions / rounds.draft_calls) if rounds.draft_calls else 0
    return plain * (draft + rounds.rounds * costs.v_tree(rounds.nodes / rounds.rounds + 1))


def chain_attainable(rounds: Rounds, gamma: int, costs: Costs, feed_last_token: bool = False) -> float:
    """mean_length / (gamma c + v(gamma + 1)): the speed-up that the calls alone would allow."""
    return rounds.mean_length / ((gamma + feed_last_token) * costs.c + costs.v(gamma + 1))


def varying_attainable(rounds: Rounds, costs: Costs, draft_calls: float) -> float:
    """mean_length / (draft calls a round x c + v), where rounds differ: at their mean numbers of calls and positions,
    as in a run's `speed/attainable`."""
    draft = draft_calls / rounds.rounds * costs.c if draft_calls else 0.0
    return rounds.mean_length / (draft + costs.v(rounds.drafted / rounds.rounds + 1))


def tree_attainable(rounds: TreeRounds, costs: Costs) -> float:
    """mean_length / (draft calls a round x c + v), as counted."""
    return rounds.tokens * costs.target[1] / tree_calls(rounds, costs)
