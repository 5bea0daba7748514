"""Predicts the seconds of rounds from what calls cost: arithmetic alone.

The seconds of a round are those of its calls and an overhead that is a straight line in the number of drafted tokens.
This module knows no model, no clock and no method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specexp.advise.rounds import Rounds
from specexp.profiling.call_costs import Costs


@dataclass(frozen=True, slots=True)
class TreeRounds:
    """Sums over the rounds of a tree method or of a draft that writes text, counted or interpolated between counted."""

    tokens: float
    rounds: float
    nodes: float
    draft_calls: float
    draft_positions: float

    @property
    def mean_length(self) -> float:
        return self.tokens / self.rounds

    @property
    def chains(self) -> float:
        """Of a draft that writes text: rounds in which it does."""
        return min(self.draft_calls, self.rounds)

    @property
    def taken_in(self) -> float:
        """Its tokens in the first draft call of each, where the others are on one."""
        return 1 + (self.draft_positions - self.draft_calls) / self.chains


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
    draft = draft_calls(rounds, costs, feed_last_token) * costs.draft_step
    return draft + rounds.rounds * catch_up(rounds, costs) * costs.target[1] + verifying_calls(rounds, costs)


def draft_calls(rounds: Rounds, costs: Costs, feed_last_token: bool = False) -> float:
    """Draft calls of a chain's rounds."""
    if costs.block:
        return rounds.chains
    return rounds.drafted - rounds.recalled + feed_last_token * rounds.chains


def catch_up(rounds: Rounds | TreeRounds, costs: Costs) -> float:
    """Target steps of a round that its first draft call takes longer because it takes in several committed tokens, as
    in a run's `speed/catch_up`."""
    if not rounds.chains:
        return 0.0
    return costs.more_to_take_in(rounds.taken_in) * rounds.chains / rounds.rounds


def verifying_calls(rounds: Rounds, costs: Costs) -> float:
    """Seconds of the target's calls alone: all of the calls, where drafts are looked up."""
    return math.fsum(number * costs.v(drafted + 1) * costs.target[1] for drafted, number in rounds.by_drafted.items())


def tree_calls(rounds: TreeRounds, costs: Costs) -> float:
    """Seconds of the calls of a tree's rounds, each call at its mean size."""
    plain = costs.target[1]
    draft = rounds.draft_calls * costs.c_tree(rounds.draft_positions / rounds.draft_calls) if rounds.draft_calls else 0
    return plain * (draft + rounds.rounds * costs.v_tree(rounds.nodes / rounds.rounds + 1))


def chain_attainable(rounds: Rounds, gamma: int, costs: Costs, feed_last_token: bool = False) -> float:
    """mean_length / (gamma c + catch_up + v(gamma + 1)): the speed-up that the calls alone would allow."""
    draft = costs.draft_calls(gamma, feed_last_token) * costs.c + catch_up(rounds, costs)
    return rounds.mean_length / (draft + costs.v(gamma + 1))


def varying_attainable(rounds: Rounds, costs: Costs, draft_calls: float) -> float:
    """mean_length / (draft calls a round x c + catch_up + v), where rounds differ: at their mean numbers of calls and
    positions, as in a run's `speed/attainable`."""
    draft = draft_calls / rounds.rounds * costs.c + catch_up(rounds, costs) if draft_calls else 0.0
    return rounds.mean_length / (draft + costs.v(rounds.drafted / rounds.rounds + 1))


def tree_attainable(rounds: TreeRounds, costs: Costs) -> float:
    """mean_length / (draft calls a round x c + v), as counted."""
    return rounds.tokens * costs.target[1] / tree_calls(rounds, costs)
