"""Which candidates are checked, and which one is recommended: made-up numbers in, names out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specexp.advise.choice import Checked, PredictedCandidate, accuracy_preserved, best, is_faster, worth_checking
from specexp.metrics.statistics import Interval


def chains(**predicted: float) -> list[PredictedCandidate]:
    """`k4=1.5`: a chain of 4; `b16=1.2`: a tree; `j8=2.0`: a judged chain."""
    kinds = {"k": ("speculative", True), "b": ("specexec", True), "j": ("autojudge", False)}
    return [
        PredictedCandidate(name, kinds[name[0]][0], int(name[1:]), kinds[name[0]][1], x)
        for name, x in predicted.items()
    ]


def names(options: list[PredictedCandidate]) -> list[str]:
    return [option.label for option in options]


def ran(speedup: float, low: float, end_to_end: float = 2.0, **more: object) -> Checked:
    interval = Interval(speedup, low, 2 * speedup - low)
    whole = Interval(end_to_end, end_to_end - 0.1, end_to_end + 0.1)
    return replace(Checked(interval, whole, interval, 4.0, 1.0), **more)  # type: ignore[arg-type]


def test_the_best_are_checked_but_not_three_neighbours() -> None:
    options = chains(k9=2.0, k10=1.99, k11=1.98, k8=1.97, k6=1.95, k14=1.92, k4=1.5)
    assert names(worth_checking(options)) == ["k9", "k6", "k14"]


def test_neighbours_are_checked_when_nothing_else_is_near() -> None:
    assert names(worth_checking(chains(k9=2.0, k10=1.99, k11=1.98, k4=1.2, b16=1.1))) == ["k9", "k10", "k11"]
    assert names(worth_checking(chains(k9=2.0, k10=1.99, b16=1.9, k2=1.0))) == ["k9", "k10", "b16"]


def test_a_tree_is_no_neighbour_of_a_chain_of_its_size() -> None:
    assert names(worth_checking(chains(k8=2.0, b8=1.95, k9=1.99, k16=1.9))) == ["k8", "b8", "k16"]


def test_few_candidates_are_all_checked() -> None:
    assert names(worth_checking(chains(k1=0.8, k2=0.9))) == ["k2", "k1"]


def test_a_lossless_candidate_is_always_among_those_checked() -> None:
    options = chains(j16=3.0, j8=2.9, j4=2.8, k8=1.9, k4=1.8)
    assert names(worth_checking(options)) == ["j16", "j8", "k8"]


def test_the_fastest_that_pays_beyond_doubt_is_recommended() -> None:
    lossless = dict.fromkeys(("a", "b", "c"), True)
    assert best(lossless, {"a": ran(1.8, 1.7), "b": ran(1.9, 1.6), "c": ran(2.5, 0.99)}) == "b"
    assert best(lossless, {"a": ran(1.8, 1.0)}) is None, "an interval that touches 1 is no gain"
    assert best(lossless, {"a": ran(0.9, 0.8), "b": ran(0.95, 0.9)}) is None
    assert best(lossless, {}) is None


def test_what_pays_in_decoding_alone_is_not_recommended() -> None:
    assert not is_faster(ran(1.2, 1.1, end_to_end=1.05))
    assert is_faster(ran(1.2, 1.1, end_to_end=1.15))


@pytest.mark.parametrize(
    ("checked", "expected"),
    [
        (ran(3, 2.9, checked=8, lost=0), True),
        (ran(3, 2.9, checked=8, lost=1, gained=1), True),
        (ran(3, 2.9, checked=8, lost=1), False),
        (ran(3, 2.9, checked=8, lost=1, trusted=False), False),
        (ran(3, 2.9, checked=8, lost=0, trusted=False), True),
        (ran(3, 2.9, trusted=True), True),
        (ran(3, 2.9, trusted=False), False),
    ],
)
def test_a_lossy_candidate_must_have_done_no_harm(checked: Checked, expected: bool) -> None:
    assert accuracy_preserved(checked) is expected
    assert best({"j": False, "k": True}, {"j": checked, "k": ran(1.5, 1.4)}) == ("j" if expected else "k")


def test_a_lossless_candidate_whose_outputs_refute_it_is_not_recommended() -> None:
    wrong = ran(3, 2.9, unexplained=1)
    assert best({"k": True, "b": True}, {"k": wrong, "b": ran(1.5, 1.4)}) == "b"
    assert best({"k": True}, {"k": wrong}) is None
