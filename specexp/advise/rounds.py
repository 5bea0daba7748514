"""Predicts the rounds of chains from how often the target agrees with the draft along an output: arithmetic alone.

Which drafted tokens are accepted does not depend on the draft length: given the output, the token at position i is
accepted, if it is drafted and reached, with probability

    b_i = P(accepted | x_i is emitted) = min(p_i(x_i), q_i(x_i)) / p_i(x_i) = min(1, q_i(x_i) / p_i(x_i)),

independently from position to position. At temperature 0, where both are one-hot, b_i is 1 if the draft's first choice
is the target's, else 0. So one output and its b give the rounds of every draft length: expected ones given this output,
and at temperature 0 the exact rounds of decoding. (The mean of b_i over what may be emitted is the sum_x min(p, q) of
`accept/alpha`; it cannot replace b_i, since what is accepted also decides what follows.)

A draft model has one b for a token, wherever its chain begins. A draft that reads the target's states has none of
those of tokens that it drafted: it has one b for each number of tokens that its chain drafted before (`Trace.after`).
These are the output's own, since the token is not reached unless all of them are accepted.

A looked-up draft is one-hot. At every temperature its b is 1 where it proposes the token that was emitted, and 0
elsewhere: given the output, its rounds are certain. A draft that stops early stops by tokens that it keeps, whose
probabilities the output gives; how far it continues after a token that is then rejected lies off the output, and is
fitted to counted runs (`Stop`).

A chain that is verified as a block (Sun et al. 2403.10444) keeps i tokens of the output, whatever follows them, with

    w_i = min(1, Q_1, ..., Q_i),  Q_j = product of q(x) / p(x) over its first j tokens:

it drafts them with probability prod q and then keeps them with b_i = min(1, b_(i-1) p / q), while the output has them
with prod p. A looked-up chain is verified alike either way.

This module knows no model, no clock and no method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


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
    # Where tokens are sampled: q(x) / p(x) of each token, and the mean probability under the draft of those that are
    # rejected there.
    ratio: Sequence[float] = ()
    rejected: Sequence[float] = ()
    # Of a draft that reads the target's states: the same where its chain has drafted 1, 2, ... tokens before. A place
    # that no chain reaches so has zeros.
    deeper: Sequence[Trace] = ()
    rereads: bool = False  # such a draft takes in accepted tokens again, with their states

    def after(self, drafted: int) -> Trace:
        """What it shows of a token before which its chain drafted so many."""
        return self.deeper[min(drafted, len(self.deeper)) - 1] if drafted and self.deeper else self


@dataclass(frozen=True, slots=True)
class LookupTrace:
    """One output, as looked-up drafts see it: `agreed` has, for a round that starts at each of its tokens, how many
    proposed tokens agree with the output, or None where nothing is found. `limit` as in `Trace`.

    `proposed` has the number of proposed tokens of one draft length; without it, as many as may be."""

    agreed: Sequence[int | None]
    limit: int
    proposed: Sequence[int] = ()

    def at(self, place: int, gamma: int, bonus: bool) -> tuple[int, int]:
        """Tokens that a round proposes which starts at this place, and how many of them are accepted."""
        agreed = self.agreed[place]
        if agreed is None:
            return 0, 0
        drafted = self.proposed[place] if self.proposed else max(0, min(gamma, self.limit - place - bonus))
        return drafted, min(agreed, drafted, len(self.agreed) - place)


@dataclass(slots=True)
class Rounds:
    """Expected numbers of rounds, over all traces, by the tokens they drafted and by those accepted before the end.

    `by_tail` has the rounds whose draft leaves the output, by the most tokens that it may have off the output;
    `recalled` counts the drafted tokens that took no draft model. `chains` are the rounds in which one drafts, and
    `caught_up` counts the committed tokens that it takes in at their beginning, beyond the newest one of each.
    """

    tokens: int = 0
    by_drafted: dict[float, float] = field(default_factory=dict)
    by_accepted: dict[int, float] = field(default_factory=dict)
    by_tail: dict[int, float] = field(default_factory=dict)
    recalled: float = 0.0
    chains: float = 0.0
    caught_up: float = 0.0

    @property
    def rounds(self) -> float:
        return math.fsum(self.by_drafted.values())

    @property
    def drafted(self) -> float:
        return math.fsum(number * rounds for number, rounds in self.by_drafted.items())

    @property
    def taken_in(self) -> float:
        """Mean committed tokens that a chain's first draft call takes in."""
        return 1 + self.caught_up / self.chains if self.chains else 1.0

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
_HUGE = 1e150  # of a product of ratios, whose next factor may be as large


def fit_stop(least: float, rounds: Rounds, drafted: float) -> Stop:
    """The stop whose `goes_on` makes these rounds, simulated with `goes_on` 0, draft `drafted` tokens in all."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        tails = math.fsum(weight * Stop(least, middle).tail(most) for most, weight in rounds.by_tail.items())
        low, high = (middle, high) if rounds.drafted + tails < drafted else (low, middle)
    return Stop(least, low)


def chain_rounds(
    traces: Sequence[Trace],
    gamma: int,
    bonus: bool = True,
    stop: Stop = NEVER,
    block: bool = False,
    recalled: Sequence[LookupTrace] = (),
    feed_last_token: bool = False,
) -> Rounds:
    """The rounds of chains of at most `gamma` drafted tokens along these outputs, trimmed as the engine trims them.

    `block`: verified as a block, where tokens are sampled. Where `recalled` proposes something, that is drafted. With
    `feed_last_token`, the draft takes in its last token too.
    """
    result = Rounds()
    for i, trace in enumerate(traces):
        result.tokens += len(trace.accepted)
        others = recalled[i] if recalled else None
        _along(trace, gamma, bonus, stop, result, block and bool(trace.ratio), others, feed_last_token)
    return result


def lookup_rounds(traces: Sequence[LookupTrace], gamma: int, bonus: bool = True) -> Rounds:
    """The rounds of looked-up drafts of `gamma` tokens along these outputs."""
    result = Rounds()
    for trace in traces:
        length, place = len(trace.agreed), 0
        result.tokens += length
        while place < length:
            place += recall(trace, place, gamma, bonus, result)
    return result


def recall(trace: LookupTrace, place: int, gamma: int, bonus: bool, rounds: Rounds, weight: float = 1.0) -> int:
    """Count a round of looked-up tokens, and return how many tokens it emits."""
    drafted, num_accepted = trace.at(place, gamma, bonus)
    _add(rounds.by_drafted, drafted, weight)
    _add(rounds.by_accepted, num_accepted, weight)
    rounds.recalled += drafted * weight
    return num_accepted + (1 if bonus or num_accepted < drafted or not drafted else 0)


def kept(trace: Trace, place: int, most: int, block: bool) -> Iterator[float]:
    """P(the first 1, 2, ..., `most` tokens of a chain from this place are kept | the output), if they are drafted."""
    result, product = 1.0, 1.0
    for i in range(most):
        here = trace.after(i)
        if block:
            product = min(product * here.ratio[place + i], _HUGE)
            result = min(result, product)
        else:
            result *= here.accepted[place + i]
        yield result


def behind(trace: Trace, emitted: int, num_accepted: int, drafted: int, feed_last_token: bool) -> int:
    """After a round in which the draft drafted: committed tokens, besides the newest, that it has yet to take in."""
    if not drafted:
        return emitted
    return emitted - 1 - (0 if trace.rereads else min(num_accepted, drafted - 1 + feed_last_token))


def _along(
    trace: Trace, gamma: int, bonus: bool, stop: Stop, rounds: Rounds, block: bool, recalled: LookupTrace | None,
    feed_last_token: bool,
) -> None:  # fmt: skip
    """Add one trace: the probability that a round starts at a place moves on to where the next round starts."""
    length = len(trace.accepted)
    starts, waiting = [0.0] * length, [0.0] * length  # waiting: times the tokens that the draft has yet to take in
    starts[0] = 1.0

    def go_on(following: int, weight: float, not_taken_in: float) -> None:
        if following < length:
            starts[following] += weight
            waiting[following] += not_taken_in

    for place, weight in enumerate(starts):
        if not weight:
            continue
        if recalled is not None and recalled.at(place, gamma, bonus)[0]:
            emitted = recall(recalled, place, gamma, bonus, rounds, weight)
            go_on(place + emitted, weight, waiting[place] + weight * emitted)
            continue
        most = most_drafted(trace, place, gamma, bonus)
        drafted = most
        if stop.least:
            unsure = (i for i in range(min(most, length - place)) if trace.after(i).certainty[place + i] < stop.least)
            drafted = next(unsure, most - 1) + 1
        if drafted:
            rounds.chains += weight
            rounds.caught_up += waiting[place]
        num_left = min(drafted, length - place)  # after an EOS nothing is emitted
        going = weight
        for num_accepted, share in enumerate(kept(trace, place, num_left, block)):
            passed = weight * share
            if ended := going - passed:
                _left(rounds, num_accepted + 1, most, stop, ended)
                _add(rounds.by_accepted, num_accepted, ended)
                left = behind(trace, num_accepted + 1, num_accepted, num_accepted + 1, feed_last_token)
                go_on(place + num_accepted + 1, ended, ended * left)
            going = passed
            if not going:
                break
        else:
            _left(rounds, num_left, drafted, stop, going)
            _add(rounds.by_accepted, num_left, going)
            emitted = num_left + (bonus or not drafted)  # the target's token after a full chain, or a plain step
            left = behind(trace, emitted, num_left, drafted, feed_last_token)
            go_on(place + emitted, going, going * left + (0.0 if drafted else waiting[place]))


def most_drafted(trace: Trace, place: int, gamma: int, bonus: bool) -> int:
    """The most tokens that the draft may have from this place."""
    return max(0, min(gamma, trace.limit - place - bonus, trace.draft_limit - place))


def _left(rounds: Rounds, followed: int, most: int, stop: Stop, weight: float) -> None:
    """Count rounds whose draft followed the output for `followed` tokens, of at most `most`."""
    if weight:
        _add(rounds.by_drafted, followed + stop.tail(most - followed), weight)
        if most > followed:
            _add(rounds.by_tail, most - followed, weight)


def _add(histogram: dict[Any, float], key: float, weight: float) -> None:
    histogram[key] = histogram.get(key, 0.0) + weight
