"""Mining with a budget for thoughts, against the literal procedure with the same budget."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from helpers import reference_miner
from helpers.mining import Reads, toy_examples
from helpers.reference_miner import Reference
from specexp.engine import ThinkingBudget
from specexp.judge.splits import split_of
from specexp.lm.toy import ToyModel
from specexp.pair.loading import Pair
from specexp.pair.tokenization import ToyText

ANSWER, SIZE = 14, 5
END, FORCED = (2,), (3, 2, 4)


def thought_of(output: list[int]) -> tuple[bool, range, list[int]]:
    """Whether the thought, which the prompt begins, is over, where its forced tokens are, and those it still lacks."""
    for size in range(1, min(SIZE, len(output)) + 1):
        if output[size - 1] == END[0]:
            return True, range(0), []
    if len(output) < SIZE:
        return False, range(0), []
    lacking = list(FORCED)
    for size in (2, 1):
        if output[SIZE - size : SIZE] == list(FORCED[:size]):
            lacking = list(FORCED[size:])
            break
    there = output[SIZE : SIZE + len(lacking)]
    return True, range(SIZE, SIZE + len(there)), lacking[len(there) :]


def respond(pair: Any, prompt: list[int], output: list[int]) -> tuple[list[int], int]:
    """The target's greedy output that begins as `output`, by a fresh forward for every token, and how many."""
    model, calls = pair.models["target"], 0
    while not (output and output[-1] in pair.eos_ids):
        over, forced, lacking = thought_of(output)
        output = [*output, *lacking]
        first = next((i + 1 for i, token in enumerate(output) if token == END[0]), 0)
        begun = max(forced.stop, SIZE + len(lacking)) if forced or lacking else first
        if over and len(output) - begun >= ANSWER:
            break
        logits, _ = model.session().feed(model.ids([*prompt, *output]), rows=1)
        output, calls = [*output, int(logits[-1].argmax())], calls + 1
    return output, calls


def mined(pair: Any, task: Any, example: Any) -> Reference:
    """Algorithm 1, token by token; forced tokens are nobody's choice."""
    prompt = pair.text.encode(example.messages())
    y, _ = respond(pair, prompt, [])
    answer = reference_miner.read(pair, task, y)
    if y[-1] not in pair.eos_ids or answer is None:
        return Reference("unfinished" if y[-1] not in pair.eos_ids else "no_answer")
    result, t = Reference("mined"), 0
    while t < len(y):
        d = reference_miner.draft_choices(pair, prompt, y)[t]
        if d != y[t] and t not in thought_of(y)[1]:
            swapped, calls = respond(pair, prompt, [*y[:t], d])
            result.num_calls += calls
            finished = swapped[-1] in pair.eos_ids
            after = reference_miner.read(pair, task, swapped) if finished else None
            important = None
            if finished:
                important = after is None or not task.comparator.equal(after, answer, example)
            result.labels.append(
                {
                    "prompt_id": example.prompt_id, "position": t, "target_token": y[t], "draft_token": d,
                    "target_text": pair.text.decode([y[t]]), "draft_text": pair.text.decode([d]),
                    "important": important, "answer_before": answer, "answer_after": after,
                    "split": split_of(example.prompt_id),
                }
            )  # fmt: skip
            y = swapped if important is False else y
        t += 1
    result.response = y
    return result


@pytest.mark.parametrize("rows", [1, 3])
def test_labels_are_those_of_the_literal_procedure(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mining = importlib.import_module("specexp.judge.mining")
    rule = ThinkingBudget(SIZE, (), END, FORCED, lambda prompt: True)
    monkeypatch.setattr(mining, "budget_of", lambda text, size: rule)
    kinds, cut, after = Counter[Any](), 0, 0
    for vocab, seed, noise in ((6, 1, 0.8), (8, 3, 0.5), (12, 7, 0.6)):
        models: Any = {"target": ToyModel(vocab, seed), "draft": ToyModel(vocab, seed, draft_noise=noise)}
        pair = Pair(ToyText(vocab), models, (0,))
        for task in (Reads("the sum modulo 3"), Reads("always the same")):
            miner = mining.Miner(pair, task, ANSWER, max_batch_size=rows, thinking_budget=SIZE)
            examples = toy_examples(8)
            for place, one in miner.mine_all(examples):
                slow = mined(pair, task, examples[place])
                assert one.status == slow.status
                if slow.status == "mined":
                    assert [asdict(label) for label in one.labels] == slow.labels
                    assert one.response == slow.response
                    assert one.counts["slow_target_calls"] == slow.num_calls
                    cut += bool(thought_of(one.response)[1])
                    after += any(label.position > SIZE + len(FORCED) for label in one.labels)
                    kinds.update(label.important for label in one.labels)
    assert kinds[True] > 3
    assert kinds[False] > 3
    assert cut > 2
    assert after > 3
