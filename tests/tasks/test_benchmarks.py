"""Tasks with answers of other kinds: what they ask, what they read, and which rows they refuse."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from specexp import config
from specexp.errors import ConfigError, TaskError
from specexp.tasks import long_prompts
from specexp.tasks.source import DataConfig
from specexp.tasks.task import notes_of, task

QUESTION = {
    "question_id": 70, "question": "Which is red?", "options": ["sky", "grass", "blood"], "answer": "C",
    "answer_index": 2, "cot_content": "", "category": "biology", "src": "x",
}  # fmt: skip
PROBLEM = {
    "problem": "What is $1/2 + 1/2$?", "solution": r"It is $\boxed{1}$.", "level": "1", "type": "Algebra",
}  # fmt: skip
SPEED = {
    "question_id": "q1", "category": "coding", "sub_category": "x", "turns": ["Write a loop.", "Shorten it."],
    "source": "s", "src_id": "1", "difficulty": "easy", "multiturn": True,
}  # fmt: skip


def rows(workplace: Path, *given: dict[str, Any]) -> DataConfig:
    (workplace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return DataConfig("rows.jsonl")


def test_mmlu_pro_lists_the_options_and_reads_a_letter(workplace: Path) -> None:
    others = [{**QUESTION, "question_id": i, "category": f"c{i % 3}"} for i in range(9)]
    chosen = task("mmlu_pro", rows(workplace, QUESTION, *others))
    example = chosen.examples(10)[0]
    assert (example.prompt_id, example.answer, example.category) == ("mmlu_pro-70", "C", "biology")
    (prompt,) = example.turns
    assert prompt.startswith("Which is red?\n\nOptions:\nA. sky\nB. grass\nC. blood\n\n")
    assert '"The answer is (X)"' in prompt
    assert chosen.extract("It is not A. The answer is (C).", True) == "C"
    assert chosen.comparator.equal("C", "C", example)
    assert not chosen.comparator.equal("B", "C", example)
    assert Counter(x.category for x in chosen.examples(4)) == dict.fromkeys(("biology", "c0", "c1", "c2"), 1)
    assert notes_of(chosen) == []


@pytest.mark.parametrize(
    "change,words",
    [
        ({"options": ["one"]}, "'options' must be a list of 2 to 10 texts, got ['one']."),
        ({"options": "abc"}, "'options' must be a list of 2 to 10 texts, got 'abc'."),
        ({"options": ["a", " ", "b"]}, "'options' must hold texts that are not empty."),
        ({"answer": "D"}, "'answer' is 'D'; it must be one of A, B, C."),
        ({"answer": 2}, "'answer' is 2; it must be one of A, B, C."),
        ({"answer_index": 1}, "'answer' is C, but 'answer_index' is 1, not its place."),
        ({"question": ""}, "'question' must be a text that is not empty"),
    ],
)
def test_rows_that_are_not_of_mmlu_pros_form_are_refused(change: dict[str, Any], words: str, workplace: Path) -> None:
    with pytest.raises(TaskError) as error:
        task("mmlu_pro", rows(workplace, {**QUESTION, **change}))
    assert str(error.value).startswith("rows.jsonl, line 1: ")
    assert words in str(error.value)
    with pytest.raises(TaskError, match="'mmlu_pro-70' is given twice"):
        task("mmlu_pro", rows(workplace, QUESTION, QUESTION))


def test_math_takes_the_answer_from_the_box(workplace: Path) -> None:
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    given = {**PROBLEM, "answer": "2", "unique_id": "test/algebra/1.json"}
    chosen = task("math", rows(workplace, PROBLEM, given))
    first, second = chosen.examples(2)
    assert (first.prompt_id, first.answer, first.category) == ("math-1", "1", "Algebra")
    assert (second.prompt_id, second.answer) == ("math-test/algebra/1.json", "2")
    assert first.turns[0].startswith("What is $1/2 + 1/2$?\nSolve the problem")
    assert chosen.extract(r"Thus \boxed{\frac{2}{2}}. Or 3", False) == r"\frac{2}{2}"
    assert chosen.extract("Thus 1", True) is None
    assert chosen.comparator.equal(r"\frac{2}{2}", "1", first)
    for change, words in (
        ({"solution": "It is 1."}, "'solution' must hold its answer"),
        ({"answer": " "}, "'answer' must"),
    ):
        with pytest.raises(TaskError, match=words):
            task("math", rows(workplace, {**PROBLEM, **change}))


def test_math_is_refused_without_its_package(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "math_verify", missing)
    with pytest.raises(
        TaskError, match=r"task math needs the package 'math-verify', which is not installed: pip install"
    ):
        task("math", rows(workplace, PROBLEM))


def test_speed_bench_is_read_from_a_filled_copy(workplace: Path) -> None:
    chosen = task("speed_bench", rows(workplace, SPEED))
    (example,) = chosen.examples(5)
    assert (example.prompt_id, example.turns, example.answer) == ("speed_bench-q1", tuple(SPEED["turns"]), None)
    assert notes_of(chosen) == []
    empty = {**SPEED, "turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]}
    with pytest.raises(
        TaskError, match=r"line 1: 'turns' holds a placeholder, no question; fill your copy with prepare"
    ):
        task("speed_bench", rows(workplace, empty))
    with pytest.raises(ConfigError, match="task 'speed_bench' reads its prompts from a file; set data to that file"):
        config.resolve("arith_quick", {"task": "speed_bench"})


def test_options_that_fill_a_row_up_are_left_out(workplace: Path) -> None:
    """Early revisions of MMLU-Pro have ten options in every row, N/A at the end; an answer may be N/A all the same."""
    filled = [*QUESTION["options"], *["N/A"] * 7]
    real = {**QUESTION, "question_id": 71, "options": ["N/A", "sky", "grass", "N/A"], "answer": "D", "answer_index": 3}
    one, other = task("mmlu_pro", rows(workplace, {**QUESTION, "options": filled}, real)).examples(2)
    assert "\nC. blood\n\n" in one.turns[0]
    assert "N/A" not in one.turns[0]
    assert "\nA. N/A\nB. sky\nC. grass\nD. N/A\n\n" in other.turns[0]


@pytest.mark.parametrize("name,row", [("mmlu_pro", QUESTION), ("speed_bench", SPEED)])
def test_parquet_files_of_the_published_columns_are_read_without_a_note(
    workplace: Path, name: str, row: dict[str, Any]
) -> None:
    """The hub's files, and test.parquet of SPEED-Bench's prepare_data.py, with a list in a column."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), workplace / "test.parquet")
    lines = task(name, rows(workplace, row))
    table = task(name, DataConfig("test.parquet"))
    assert table.examples(5) == lines.examples(5)
    assert notes_of(table) == notes_of(lines) == []


@pytest.mark.parametrize("num_tokens", [256, 8192, 32_768])
def test_a_long_text_has_its_length_and_answers_its_question(num_tokens: int) -> None:
    one, again, other = (long_prompts.long_text("test", num_tokens, index) for index in (3, 3, 4))
    assert one == again
    assert one.text != other.text
    assert num_tokens * long_prompts.CHARACTERS == pytest.approx(len(one.text), abs=150)
    thing = one.text.rpartition("What is the code of the ")[2].partition("?")[0]
    assert one.text.count(f"The code of the {thing} is {one.code}.") == 1
    assert one.text.count(f"The code of the {thing} is ") == 1
    assert one.text.count("The code of the ") == len(one.places) == long_prompts.NUM_CODES
    assert all(one.text[place:].startswith("The code of the ") for place in one.places)


def test_long_prompts_are_a_task_whose_splits_share_no_code() -> None:
    codes: dict[str, set[str | None]] = {}
    for split in ("test", "mining"):
        chosen = task("long_prompts", split=split, num_tokens=300)
        codes[split] = {example.answer for example in chosen.examples(40)}
        assert chosen.examples(3) == chosen.examples(40)[:3]
        assert chosen.dataset().digest != task("long_prompts", split=split, num_tokens=301).dataset().digest
    assert len(codes["test"]) == 40
    assert {int(str(code)) % 8 for code in codes["test"]} == {0}
    assert {int(str(code)) % 8 for code in codes["mining"]} == {2, 3}
    assert chosen.extract("I found it.\n#### 12,345", True) == "12345"
    with pytest.raises(TaskError, match="long_prompts has no split 'tset'"):
        long_prompts.long_text("tset", 300, 0)


def test_settings_of_these_tasks(workplace: Path) -> None:
    (workplace / "long.yaml").write_text("prompt_tokens: 32768\n")
    asked = config.resolve("arith_quick", {"task": "long_prompts", "config": "long.yaml"})
    plain = config.resolve("arith_quick", {"task": "long_prompts"})
    assert (asked.prompt_tokens, plain.prompt_tokens, plain.max_new_tokens) == (32_768, 8192, 128)
    assert asked.hash != plain.hash
    (workplace / "short.yaml").write_text("prompt_tokens: 12\n")
    with pytest.raises(ConfigError, match="prompt_tokens is 12; it must be a whole number >= 256 and at most 131072"):
        config.resolve("arith_quick", {"task": "long_prompts", "config": "short.yaml"})


def test_labels_are_not_mined_on_the_rows_of_evaluations() -> None:
    for name in ("mmlu_pro", "math"):
        with pytest.raises(
            ConfigError, match=f"the rows of task '{name}' are those of evaluations; set skip to as many"
        ):
            config.resolve_mining("arith_quick", {"task": name})
        mining = config.resolve_mining("arith_quick", {"task": name, "skip": "200"})
        assert mining.experiment.data is not None
        assert (mining.skip, mining.experiment.data.split) == (200, "test")
        config.resolve_mining("arith_quick", {"task": name, "data": "own.jsonl"})
