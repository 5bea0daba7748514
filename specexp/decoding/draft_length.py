"""How long a chain of `gamma: auto` gets: it ends where no longer chain pays at what calls cost.

In units of a target step, a draft step costs c and a target call on n positions v(n). A decoder that emits r tokens per
target step gains by another m tokens, after i drafted ones, if they bring more than r times what they cost:

    s_i (a + a^2 + ... + a^m) > r (m c + v(i + 1 + m) - v(i + 1)).

s_i is the probability that all i tokens are accepted, the product of what is predicted of each from its probability
under the draft, and a the acceptance of a token that is not drafted yet. Ending where this holds for no m maximises
tokens over time (a stopping problem with the reward rate r; Leviathan et al. 2211.17192, 3.5 has the case of equal
acceptances, where it gives the best fixed gamma). s, a and r are estimated by the engine, along the output.

This module is arithmetic on numbers of the host. It measures nothing, and knows neither models nor arrays.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

BINS = 8  # of a token's probability under the draft, each with an acceptance of its own
_EDGES = [i / BINS for i in range(1, BINS)]
GRID = 32  # acceptances of tokens to come are rounded to this part


@dataclass(frozen=True, slots=True)
class RelativeCosts:
    """What calls cost, in steps of the target: a draft step (c), and target calls on 1, 2, ... positions (v).

    `begin` is what the first step of a chain costs more, where a draft then takes in all that was committed.
    """

    draft: float
    target: tuple[float, ...]
    begin: float = 0.0

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> RelativeCosts:
        """Costs as JSON keeps their fields; those of earlier versions have no `begin`."""
        return cls(stored["draft"], tuple(stored["target"]), stored.get("begin", 0.0))

    def chain(self, steps: int, positions: int) -> float:
        """A round of so many draft steps, 0 or more, and a target call on so many positions."""
        return (steps > 0) * self.begin + steps * self.draft + self.v(positions)

    def v(self, positions: int) -> float:
        """A target call on n positions; beyond the last one that is known, as much as that."""
        return self.target[min(positions, len(self.target)) - 1]

    def prices(self, most: int, acceptance: float) -> tuple[float, ...]:
        """prices[most]: after i drafted tokens that are all accepted, the cost of one more emitted token, in the
        longer chain of at most `most` tokens that makes it cheapest. `acceptance` is that of a token to come."""
        return _prices(self, most, min(GRID - 1, max(1, round(acceptance * GRID))))

    def best_rate(self, most: int, acceptance: float) -> float:
        """Tokens per target step of the best fixed length up to `most`, 0 included, if each is accepted alike."""
        tokens = rate = 1.0
        for length in range(1, most + 1):
            tokens += acceptance**length
            rate = max(rate, tokens / self.chain(length, length + 1))
        return rate


# Where nothing was measured: a draft at a tenth of the target, and calls that hardly cost more for more positions.
NOMINAL = RelativeCosts(0.1, tuple(1 + n / 50 for n in range(65)))


@cache
def _prices(costs: RelativeCosts, most: int, acceptance: int) -> tuple[float, ...]:
    result = []
    for i in range(most):
        gain, power, best = 0.0, 1.0, float("inf")
        for m in range(1, most - i + 1):
            power *= acceptance / GRID
            gain += power
            best = min(best, (m * costs.draft + costs.v(i + 1 + m) - costs.v(i + 1)) / gain)
        result.append(best)
    return tuple(result)


def bin_of(probability: float) -> int:
    """The bin of a token by its probability under the draft, from 0 to BINS - 1."""
    return bisect(_EDGES, probability)  # also of NaN, which the engine reports when it commits the round


@dataclass(frozen=True, slots=True)
class Stopping:
    """Where one chain ends: `least`[L] has the probability that its first i tokens are all accepted, above which
    token i + 1 is drafted (`least[0]` is not used: the chain has a first token); `acceptance`[BINS] what is predicted
    of a token, by its probability under the draft."""

    least: Sequence[float]
    acceptance: Sequence[float]

    def accepted(self, probability: float) -> float:
        """The predicted acceptance of a token with this probability under the draft."""
        return self.acceptance[bin_of(probability)]

    def goes_on(self, drafted: int, survival: float) -> bool:
        """True if another token follows `drafted` ones that are all accepted with probability `survival`."""
        return drafted < len(self.least) and survival > self.least[drafted]
