"""Labels of programs: a mismatch is important if the program passes other tests, as the literal procedure finds."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from helpers import reference_miner
from helpers.mining import LIMIT, disagreements, miner, toy_examples
from helpers.sandboxes import sandbox_of
from specexp.sandbox.job import CallTest
from specexp.tasks.programs import ProgramProblem, ProgramTests

PROBLEM = ProgramProblem("", "", (CallTest("f", (0,), 0), CallTest("f", (2,), 3)))


@dataclass(frozen=True)
class Writes:
    """A task whose answer is a program that a response's ids choose: eight texts, of which some pass the same tests."""

    comparator: ProgramTests
    name: str = "writes"
    seen: set[str] = field(default_factory=set)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        number = sum(int(part) for part in text.split()) % 8
        program = f"def f(x):\n    return x + (x > {number // 2})  # {number}"
        self.seen.add(program)
        return program


def test_labels_are_those_of_the_literal_procedure() -> None:
    sandbox = sandbox_of("subprocess")
    toy, pairs = importlib.import_module("specexp.lm.toy"), importlib.import_module("specexp.pair.loading")
    models = {"target": toy.ToyModel(9, 4), "draft": toy.ToyModel(9, 4, draft_noise=0.4)}
    pair = pairs.Pair(pairs.ToyText(9), models, (0,))
    task: Any = Writes(ProgramTests("writes", lambda prompt_id: PROBLEM, sandbox))
    mine = miner(pair, task)
    labels = []
    for example in toy_examples(40):
        slow = reference_miner.mine(pair, task, LIMIT, example)
        mined = mine.mine(example)
        assert list(disagreements(mined, slow, 1e-12)) == []
        labels += mined.labels
    decided = [label for label in labels if label.important is not None]
    other_text = [label for label in decided if label.answer_after != label.answer_before]
    assert any(label.important for label in decided)
    assert any(not label.important for label in other_text), "another program that passes the same tests"
    assert all(label.important is False for label in decided if label.answer_after == label.answer_before)
    passed = {task.comparator.passed(program, toy_examples(1)[0]) for program in task.seen}
    assert passed == {(True, True), (True, False)}
