"""Which candidates are worth a run, and which of those that ran is to be recommended. Numbers in, names out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specexp.metrics.statistics import Interval

NUM_CHECKED = 3
NEAR = 0.10  # predicted within this share of the best
ALIKE = 1.3  # of two lengths or budgets, the larger / the smaller below which they are neighbours


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate: its label, what it is one of, its length or budget, and the speed-up that is predicted."""

    label: str
    kind: str
    size: int
    lossless: bool
    predicted: float


def worth_checking(options: Sequence[Option], count: int = NUM_CHECKED) -> list[Option]:
    """The best by prediction, `count` at most, but no neighbour of one that is taken while others are near the best.

    One of them is lossless, if any option is.
    """
    ranked = sorted(options, key=lambda option: -option.predicted)
    chosen: list[Option] = []
    for option in ranked:
        near = option.predicted >= (1 - NEAR) * ranked[0].predicted
        if near and not any(_neighbours(option, other) for other in chosen):
            chosen.append(option)
    chosen += [option for option in ranked if option not in chosen]
    chosen = chosen[:count]
    exact = next((option for option in ranked if option.lossless), None)
    if exact is not None and not any(option.lossless for option in chosen):
        chosen[-1] = exact
    return sorted(chosen, key=lambda option: -option.predicted)


def _neighbours(one: Option, other: Option) -> bool:
    small, large = sorted((one.size, other.size))
    return one.kind == other.kind and large < ALIKE * small


@dataclass(frozen=True, slots=True)
class Checked:
    """What a run of a candidate came to, against plain decoding interleaved with it.

    `lost` and `gained` are answers that were right with plain decoding alone, or with the candidate alone, of `checked`
    that can be right or wrong; `equal` is the share of outputs that are plain decoding's. `trusted` says whether a
    lossy setting is within what its judge was calibrated for. `unexplained` counts outputs that are not plain
    decoding's though they must be, and at no near tie.
    """

    speedup: Interval
    end_to_end: Interval
    tokens_per_second: Interval
    mean_length: float
    equal: float
    checked: int = 0
    lost: int = 0
    gained: int = 0
    trusted: bool = True
    unexplained: int = 0


def is_faster(found: Checked) -> bool:
    """Whether it is faster than plain decoding beyond doubt, the draft's prefill included."""
    return found.speedup.low > 1 and found.end_to_end.low > 1


def accuracy_preserved(found: Checked) -> bool:
    """Whether a lossy setting may be recommended: no answer fewer; where none can be checked, a threshold no higher
    than the judge's own."""
    return found.gained >= found.lost if found.checked else found.trusted


def may_run(lossless: bool, found: Checked) -> bool:
    """Whether a setting may be recommended for what it emits: a lossless one unless its outputs refute that."""
    return not found.unexplained if lossless else accuracy_preserved(found)


def best(lossless: Mapping[str, bool], found: Mapping[str, Checked]) -> str | None:
    """The fastest of those that ran, of those that pay and did no harm; None: do not speculate."""
    good = [label for label, each in found.items() if is_faster(each) and may_run(lossless[label], each)]
    return max(good, key=lambda label: found[label].speedup.value, default=None)
