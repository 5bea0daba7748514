"""The dials of the rules on one scale: a mismatch is accepted if its score is below a bound.

A rule's score is the value of its dial from which on it accepts a mismatch, with the sign that makes larger bounds
looser. A judge's score is its probability, and its dial the threshold. Infinite scores are never accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from specexp.decoding.untrained_rules import DISTANCES, entropy

JUDGE = "autojudge"


@dataclass(frozen=True, slots=True)
class MismatchPlace:
    """A mismatch as the rules see it: p[1, V] and q[1, V] at temperature 1, and the drafted token.

    `agrees`: the target's first choices at the window behind the token are what the draft says there.
    """

    p: np.ndarray
    q: np.ndarray
    token: int
    agrees: bool


@dataclass(frozen=True, slots=True)
class Dial:
    """How a rule is set: the name of its setting, its lossless end and its other end, and other settings it needs."""

    method: str  # the method preset
    setting: str
    lossless: float
    loosest: float
    score: Callable[[MismatchPlace, int], float]
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def sign(self) -> float:
        """1 if larger values of the dial accept more, else -1."""
        return 1.0 if self.loosest > self.lossless else -1.0

    def bound(self, value: float) -> float:
        """The bound on scores at a value of the dial."""
        return self.sign * value

    def value(self, bound: float) -> float:
        """The value of the dial with this bound, at most at its ends."""
        return min(max(self.sign * bound, min(self.lossless, self.loosest)), max(self.lossless, self.loosest))


def _typical(place: MismatchPlace, k: int) -> float:
    # p > min(epsilon, sqrt(epsilon) exp(-H)) where epsilon is below p or below (p exp(H))^2.
    chance = float(place.p[0, place.token])
    return -min(max(chance, (chance * math.exp(float(entropy(place.p)[0]))) ** 2), 1.0)


def _entropy(place: MismatchPlace, k: int) -> float:
    return -min(float(entropy(place.p)[0]) / math.log(place.p.shape[1]), 1.0)


def _fly(place: MismatchPlace, k: int) -> float:
    return _entropy(place, k) if place.agrees else math.inf


def _relaxed(place: MismatchPlace, k: int) -> float:
    row = place.p[0]
    chance = row[place.token]
    ahead = int((row > chance).sum() + (row[: place.token] == chance).sum())
    return float(row.max() - chance) if ahead < k else math.inf


def _distance(name: str) -> Callable[[MismatchPlace, int], float]:
    return lambda place, k: float(DISTANCES[name](place.p, place.q)[0])


DIALS: Mapping[str, Dial] = {
    "typical": Dial("typical", "accept_epsilon", 1.0, 1e-6, _typical),
    "entropy": Dial("entropy", "accept_entropy", 1.0, 0.0, _entropy),
    "fly": Dial("fly", "accept_entropy", 1.0, 0.0, _fly),
    **{
        f"fuzzy_{name}": Dial("fuzzy", "accept_distance", 0.0, 1e3, _distance(name), {"distance": name})
        for name in DISTANCES
    },
    "relaxed": Dial("relaxed", "accept_margin", 0.0, 1.0, _relaxed),
}
OF_JUDGE = Dial(JUDGE, "threshold", 0.0, 1.1, lambda place, k: math.nan)
