"""A budget for thoughts through the commands, on a pair that thinks: outputs, answers, labels, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import thinking_pair
from helpers.cli_runner import evaluate, is_refused, records, refused, run, runs
from helpers.mining_runs import collect
from helpers.thinking_miner import Budget, mine, respond
from specexp import config
from specexp.judge import collection
from specexp.judge.labels import LabelSet
from specexp.tasks import arith

SIZE, ANSWER = 70, 16
METHODS = ("baseline", "speculative", "specexec", "lookup", "topk")
LOSSLESS = METHODS[:-1]
LITERAL_PROMPTS = 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return thinking_pair.save(tmp_path_factory.mktemp("thinking"))


def settings(workplace: Path, pair: dict[str, str], **more: Any) -> list[str]:
    """A file of settings: more tokens for thoughts than for answers."""
    values = {
        "target": {"model": pair["target"], "chat_template": "own"}, "draft": pair["draft"], "limit": 8,
        "max_new_tokens": ANSWER, "thinking_budget": SIZE, **more,
    }  # fmt: skip
    (workplace / "mine.yaml").write_text(yaml.safe_dump(values))
    return ["--config", "mine.yaml"]


def literal(prepared: Any) -> Budget:
    tokenizer = prepared.pair.text.tokenizer
    forced = tokenizer.encode("\n</think>\n\n", add_special_tokens=False)
    return Budget(SIZE, ANSWER, tokenizer.convert_tokens_to_ids("</think>"), tuple(forced))


def answer_in(prepared: Any, budget: Budget, output: list[int], finished: bool) -> str | None:
    said = prepared.pair.text.decode(budget.answer_of(output[: len(output) - finished]))
    answer: str | None = prepared.task.extract(said, finished)
    return answer


@pytest.mark.slow
def test_outputs_and_answers_are_those_of_whole_forwards_alone_and_in_batches(
    workplace: Path, pair: dict[str, str]
) -> None:
    arguments = [*settings(workplace, pair, methods=list(METHODS), gamma=3), "--show", "0"]
    for output, batch in (("alone", []), ("together", ["--batch", "3"])):
        result = evaluate(*arguments, *batch, "--output", output)
        assert result.exit_code == 0, result.output
        assert "note: answers are read from what follows the end of thinking, </think>;" in result.stderr
    prepared = collection.prepare(config.resolve_mining("arith_quick", {"config": "mine.yaml"}))
    budget = literal(prepared)
    examples = {example.prompt_id: example for example in config.resolve("arith_quick").read_task().examples(8)}
    expected = {
        name: respond(prepared.pair, prepared.pair.text.encode(example.messages()), [], budget)[0]
        for name, example in examples.items()
    }
    rows = {output: records(workplace / output) for output in ("alone", "together")}
    kinds: set[tuple[bool, bool]] = set()
    for row in (*rows["alone"], *rows["together"]):
        ids, finished = row["token_ids"], row["finish_reason"] == "stop"
        if row["method"] in LOSSLESS:
            assert ids == expected[row["prompt_id"]], row["label"]
        over, forced, lacking = budget.thought_of(ids)
        assert (over, lacking) == (True, [])
        assert row["num_forced"] == len(forced)
        assert len(budget.answer_of(ids)) <= ANSWER
        assert row["answer"] == answer_in(prepared, budget, ids, finished)
        assert row["correct"] == (row["answer"] == examples[row["prompt_id"]].answer)
        kinds.add((bool(forced), row["correct"]))
    assert {len(each) for each in rows.values()} == {8 * len(METHODS)}
    assert kinds >= {(True, False), (False, True)}, "a thought that is cut goes wrong, and one that ends does not"
    assert max(map(len, expected.values())) > SIZE > ANSWER
    for flat in (each for each in runs() if each.data.tags["method"] in METHODS):
        assert flat.data.params["thinking_budget"] == str(SIZE)


@pytest.mark.slow
def test_without_a_budget_a_thought_that_has_not_ended_has_no_answer(workplace: Path, pair: dict[str, str]) -> None:
    """Its numbers are none, even where the last number of any text is the answer."""
    problem = arith.distinct("test", 1)[0]
    row = {"prompt": problem.question, "answer": str(problem.answer)}
    (workplace / "rows.jsonl").write_text(json.dumps(row) + "\n")
    arguments = settings(
        workplace, pair, task="prompts", data="rows.jsonl", thinking_budget=0, methods=["baseline"], limit=1,
        answer_pattern=r"(\d+)",
    )  # fmt: skip
    answers = {}
    for most in (25, 110):
        result = evaluate(*arguments, "--max-new-tokens", str(most), "--output", f"out{most}", "--show", "0")
        assert result.exit_code == 0, result.output
        (row,) = records(workplace / f"out{most}")
        answers[most] = (row["answer"], row["correct"], bool(re.search(r"\d", row["text"])))
    assert answers == {25: (None, False, True), 110: (str(problem.answer), True, True)}


@pytest.mark.slow
def test_labels_of_the_command_are_those_of_the_literal_procedure(workplace: Path, pair: dict[str, str]) -> None:
    arguments = settings(workplace, pair, limit=12)
    sets = []
    for batch in (1, 4):
        result = collect(*arguments, "--batch", str(batch), "--output", f"labels{batch}")
        assert result.exit_code == 0, result.output
        assert "note: answers are read from what follows the end of thinking, </think>;" in result.stderr
        sets.append(LabelSet.read(workplace / f"labels{batch}"))
    assert sets[0].labels == sets[1].labels
    assert sets[0].manifest["settings"]["thinking_budget"] == SIZE
    prepared = collection.prepare(config.resolve_mining("arith_quick", {"config": "mine.yaml"}))
    budget, eos = literal(prepared), prepared.pair.eos_ids

    def read(output: list[int]) -> str | None:
        return answer_in(prepared, budget, output, output[-1] in eos)

    some = prepared.examples[:LITERAL_PROMPTS]
    slow = [mine(prepared.pair, prepared.task, example, budget, read) for example in some]
    names = {example.prompt_id for example in some}
    mined = [asdict(label) for label in sets[0].labels if label.prompt_id in names]
    assert mined == [label for one in slow for label in one.labels]
    assert {label["important"] for label in mined} >= {True, False}
    assert any(budget.thought_of(one.response)[1] for one in slow), "a thought that the budget ends"


def test_a_budget_that_cannot_be_is_refused_in_one_sentence(workplace: Path, pair: dict[str, str]) -> None:
    unmarked = "thinking_budget is 9, but neither the tokenizer nor its chat template has markers of a thought"
    for command in ("evaluate", "collect_labels"):
        refused(run(command, "--thinking-budget", "9", "--output", "out"), unmarked, workplace)
        negative = "thinking_budget is '-1'; it must be a whole number >= 0 (0 = off)."
        refused(run(command, "--thinking-budget", "-1", "--output", "out"), negative, workplace)
    # Every mined response must have its whole length.
    arguments = [*settings(workplace, pair, thinking_budget=600), "--output", "out"]
    needed = f"lower max_new_tokens or thinking_budget, which need {600 + 4 + ANSWER}."
    refused(run("collect_labels", *arguments), needed, workplace)
    is_refused(run("generate", "2+2?", "--thinking-budget", "9"), unmarked)
