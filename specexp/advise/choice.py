"""Chooses the candidates worth a run, and the one to recommend of those that ran. Numbers in, names out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specexp.metrics.statistics import Interval

NUM_CHECKED = 3
NEAR = 0.10  # predicted within this share of the best
ALIKE = 1.3  # two lengths or budgets are neighbours if the larger / the smaller is below this


@dataclass(frozen=True, slots=True)
class PredictedCandidate:
    """A candidate: its label, its kind, its length or budget, and its predicted speed-up."""

    label: str
    kind: str
    size: int
    lossless: bool
    predicted: float


def worth_checking(options: Sequence[PredictedCandidate], count: int = NUM_CHECKED) -> list[PredictedCandidate]:
    """The best by prediction, at most `count`, but no neighbour of one already chosen while others are near the best.

    One of them is lossless, if any option is.
    """
    ranked = sorted(options, key=lambda option: -option.predicted)
    chosen: list[PredictedCandidate] = []
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


def _neighbours(one: PredictedCandidate, other: PredictedCandidate) -> bool:
    small, large = sorted((one.size, other.size))
    return one.kind == other.kind and large < ALIKE * small


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a candidate's run, against plain decoding interleaved with it.

    `lost` and `gained` count answers that were right only with plain decoding, or only with the candidate, of `checked`
    answers that can be right or wrong; `equal` is the share of outputs equal to plain decoding's. `trusted` is True if
    a lossy setting is within what its judge was calibrated for. `unexplained` counts outputs that differ from plain
    decoding's although they must not, without a near tie.
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


def is_faster(result: Checked) -> bool:
    """True if it is faster than plain decoding by the whole interval, also with the draft's prefill included."""
    return result.speedup.low > 1 and result.end_to_end.low > 1


def accuracy_preserved(result: Checked) -> bool:
    """True if a lossy setting may be recommended: it lost no more answers than it gained; where no answer can be
    checked, its threshold is no higher than the judge's own."""
    return result.gained >= result.lost if result.checked else result.trusted


def may_run(lossless: bool, result: Checked) -> bool:
    """True if the output of a setting permits to recommend it: a lossless one unless its outputs refute that it is."""
    return not result.unexplained if lossless else accuracy_preserved(result)


def best(lossless: Mapping[str, bool], results: Mapping[str, Checked]) -> str | None:
    """The fastest candidate that ran, is faster than plain decoding and may run; None: do not speculate."""
    good = [label for label, each in results.items() if is_faster(each) and may_run(lossless[label], each)]
    return max(good, key=lambda label: results[label].speedup.value, default=None)
