"""Mining with a task's comparator finds what the literal procedure finds with it, whatever it calls equal."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from helpers import reference_miner
from helpers.mining import LIMIT, Reads, disagreements, miner, toy_examples

PAIRS = [(10, 5, 1.0), (12, 7, 0.6)]  # vocabulary, seed, how far the draft is from the target


@dataclass
class Recorded:
    """A comparator that is this function, and what it was asked."""

    says: Callable[[str, str, Any], bool]
    asked: list[tuple[str, str, str, bool]] = field(default_factory=list)
    name: str = "recorded"

    def equal(self, answer: str, other: str, example: Any) -> bool:
        result = self.says(answer, other, example)
        self.asked.append((example.prompt_id, answer, other, result))
        return result


def ids(text: str) -> list[int]:
    return [int(number) for number in text.split()]


COMPARATORS: dict[str, Callable[[str, str, Any], bool]] = {
    "the same set": lambda a, b, example: set(ids(a)) == set(ids(b)),
    "similar, which two equals of a third need not be": lambda a, b, example: abs(len(ids(a)) - len(ids(b))) <= 1,
    "no longer, which is one way only": lambda a, b, example: len(ids(a)) <= len(ids(b)),
    "as its prompt says": lambda a, b, example: len(ids(a)) % 2 == len(ids(b)) % 2 or example.prompt_id == "p1",
}


def toy_pair(vocab: int, seed: int, noise: float) -> Any:
    toy, pair = importlib.import_module("specexp.lm.toy"), importlib.import_module("specexp.pair.loading")
    models = {"target": toy.ToyModel(vocab, seed), "draft": toy.ToyModel(vocab, seed, draft_noise=noise)}
    return pair.Pair(pair.ToyText(vocab), models, (0,))


def mined_both_ways(name: str, examples: Sequence[Any]) -> list[tuple[Any, Any, Recorded, Recorded]]:
    """Each prompt's result, the literal procedure's, and the comparators that the two asked."""
    result = []
    for sizes in PAIRS:
        pair = toy_pair(*sizes)
        for example in examples:
            asked = Recorded(COMPARATORS[name]), Recorded(COMPARATORS[name])
            mined, slow = (Reads("every token", comparator=each) for each in asked)
            reference = reference_miner.mine(pair, slow, LIMIT, example)
            result.append((miner(pair, mined).mine(example), reference, *asked))
    return result


@pytest.mark.parametrize("name", COMPARATORS)
def test_labels_are_those_of_the_literal_procedure(name: str) -> None:
    different_but_equal = important = 0
    for mined, slow, fast_asked, slow_asked in mined_both_ways(name, toy_examples(8)):
        assert list(disagreements(mined, slow, 1e-12)) == []
        assert fast_asked.asked == slow_asked.asked
        assert len(fast_asked.asked) == sum(label.answer_after is not None for label in mined.labels)
        for label in mined.labels:
            different_but_equal += label.important is False and label.answer_after != label.answer_before
            important += label.important is True
    assert different_but_equal >= 5
    assert important >= 2


def test_the_answer_before_is_always_that_of_the_targets_own_response() -> None:
    """Also after swaps that the comparator called equal: a chain of similar answers leads nowhere."""
    name = "similar, which two equals of a third need not be"
    moved = 0
    for mined, _, asked, _ in mined_both_ways(name, toy_examples(8)):
        assert len({before for _, _, before, _ in asked.asked}) <= 1
        moved += sum(label.important is False for label in mined.labels) > 1
    assert moved >= 2
