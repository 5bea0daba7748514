"""Mining with a budget for thoughts, against the literal procedure with the same budget."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from helpers import reference_miner, thinking_miner
from helpers.mining import Reads, toy_examples
from specexp.engine import ThinkingBudget
from specexp.lm.toy import ToyModel
from specexp.pair.loading import Pair
from specexp.pair.tokenization import ToyText

ANSWER, SIZE = 14, 5
END, FORCED = 2, (3, 2, 4)
LITERAL = thinking_miner.Budget(SIZE, ANSWER, END, FORCED)


@pytest.mark.parametrize("rows", [1, 3])
def test_labels_are_those_of_the_literal_procedure(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mining = importlib.import_module("specexp.judge.mining")
    rule = ThinkingBudget(SIZE, (), (END,), FORCED, lambda prompt: True)
    monkeypatch.setattr(mining, "budget_of", lambda text, size: rule)
    kinds, cut, after = Counter[Any](), 0, 0
    for vocab, seed, noise in ((6, 1, 0.8), (8, 3, 0.5), (12, 7, 0.6)):
        models: Any = {"target": ToyModel(vocab, seed), "draft": ToyModel(vocab, seed, draft_noise=noise)}
        pair = Pair(ToyText(vocab), models, (0,))
        for task in (Reads("the sum modulo 3"), Reads("always the same")):
            miner = mining.Miner(pair, task, ANSWER, max_batch_size=rows, thinking_budget=SIZE)
            examples = toy_examples(8)

            def read(response: list[int], pair: Any = pair, task: Any = task) -> str | None:
                return reference_miner.read(pair, task, response)

            for place, one in miner.mine_all(examples):
                slow = thinking_miner.mine(pair, task, examples[place], LITERAL, read)
                assert one.status == slow.status
                if slow.status == "mined":
                    assert [asdict(label) for label in one.labels] == slow.labels
                    assert one.response == slow.response
                    assert one.counts["slow_target_calls"] == slow.num_calls
                    cut += bool(LITERAL.thought_of(one.response)[1])
                    after += any(label.position > SIZE + len(FORCED) for label in one.labels)
                    kinds.update(label.important for label in one.labels)
    assert kinds[True] > 3
    assert kinds[False] > 3
    assert cut > 2
    assert after > 3
