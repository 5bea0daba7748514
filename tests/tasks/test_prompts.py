"""Task `prompts`: how answers are read, by every rule, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specexp import config
from specexp.answers.rules import LONGEST_TEXT, AnswerRule, check_pattern, normal
from specexp.errors import ConfigError, TaskError
from specexp.tasks.source import DataConfig
from specexp.tasks.task import notes_of, task

MARKED = [
    ("so\n#### 1,234", True, "1234"),
    ("The final answer is $18.", True, "18"),
    ("The final answer is: 3.5", True, "3.5"),
    ("the final answer is 7\nor so", False, "7"),
    ("#### 4", False, None),  # the answer may go on
    ("#### 4\nno, #### 5 apples", True, "5 apples"),
    ("the answer is 42", True, None),
    ("#### \n12", True, None),
    ("####", True, None),
]


@pytest.mark.parametrize("rule", ["auto", "marker"])
@pytest.mark.parametrize("text,finished,answer", MARKED)
def test_extraction(rule: str, text: str, finished: bool, answer: str | None) -> None:
    assert AnswerRule(rule).read(text, finished, None) == answer


@pytest.mark.parametrize("gold,bare", [("1,000,000", "1000000"), ("a, b", "a, b"), (" 12. ", "12"), ("$5", "5")])
def test_gold_and_given_answers_are_brought_to_one_form(gold: str, bare: str) -> None:
    assert normal(gold) == normal(normal(gold)) == bare


@pytest.mark.parametrize(
    "gold,said",
    [
        ("29", "$29.00"), ("1234.5", "$1,234.50"), ("5", "**5**"), ("5", r"\boxed{5}"), ("0.5", "1/2"),
        ("$29.00", "29"),
        ("1,000", "1000 apples"), ("8%", "8"), ("-5", "\u22125"), ("1e3", r"1\,000"), ("5", "about 5 apples"),
    ],
)  # fmt: skip
def test_where_gold_is_a_number_numbers_are_compared(gold: str, said: str) -> None:
    number = normal(gold)
    for rule in ("auto", "marker"):
        assert AnswerRule(rule).read(f"First 7.\n#### {said}", True, number) == number
        assert AnswerRule(rule).read(f"The final answer is {said}.\nAll 7 agree.", True, number) == number
    for rule in ("auto", "last_number", "last_line"):
        assert AnswerRule(rule).read(f"First 7.\nWhat comes out is {said}", True, number) == number


@pytest.mark.parametrize("said", ["5 or 6", "five", "5-6", "4.5", "1,5"])
def test_another_number_or_none_is_not_gold(said: str) -> None:
    for rule in ("auto", "marker", "last_number", "last_line"):
        assert AnswerRule(rule).read(f"#### {said}", True, "5") != "5"


# rule, pattern, gold: what each reads in a finished text.
SUM = "Let us see.\n2 + 2 = 4"
CAPITAL = "Let me think about it.\nParis."


@pytest.mark.parametrize(
    "text,rule,pattern,gold,answer",
    [
        (SUM, "auto", "", "4", "4"),
        (SUM, "marker", "", "4", None),
        (SUM, "last_number", "", "4", "4"),
        (SUM, "last_number", "", None, "4"),
        (SUM, "last_line", "", "4", "4"),
        (SUM, "last_line", "", None, "2 + 2 = 4"),
        (SUM, "auto", "", None, None),
        (SUM, "pattern", r"= (\d+)", "4", "4"),
        (SUM, "pattern", r"\d+ \+ \d+", None, "2 + 2"),
        (SUM, "pattern", r"Answer: (.*)", "4", None),
        ("Answer: $4.00 each\nAnswer: $5.00 each", "pattern", r"Answer: (.*)", "5", "5"),
        ("ANSWER (b)", "pattern", r"(?i)answer \((.)\)", "b", "b"),
        ("a b", "pattern", r"a|(b)", "b", "b"),
        ("b a", "pattern", r"a|(b)", "b", None),
        (CAPITAL, "auto", "", "Paris", "Paris"),
        (CAPITAL, "last_line", "", "Paris", "Paris"),
        (CAPITAL, "marker", "", "Paris", None),
        (f"#### London\n{CAPITAL}", "auto", "", "Paris", "London"),
        ("no number at all", "auto", "", "4", None),
        (" \n ", "auto", "", "Paris", None),
    ],
)
def test_each_rule_reads_its_own_answer(
    text: str, rule: str, pattern: str, gold: str | None, answer: str | None
) -> None:
    assert AnswerRule(rule, pattern).read(text, True, gold) == answer


@pytest.mark.parametrize("rule", ["auto", "last_number", "last_line"])
def test_an_unfinished_text_has_no_last_number_or_line_yet(rule: str) -> None:
    assert AnswerRule(rule).read(SUM, False, "4") is None
    assert AnswerRule(rule).read(CAPITAL, False, "Paris") is None


def test_a_match_that_touches_the_end_of_an_unfinished_text_may_go_on() -> None:
    assert AnswerRule("pattern", r"= (\d+)").read(SUM, False, "4") is None
    assert AnswerRule("pattern", r"= (\d+)").read(f"{SUM} and", False, "4") == "4"


def test_a_pattern_is_tried_on_the_end_of_a_text_alone() -> None:
    assert AnswerRule("pattern", "a(b)").read("ab" + " " * LONGEST_TEXT, True, None) is None


@pytest.mark.parametrize(
    "pattern,message",
    [
        ("(", "it must be a regular expression: missing )"),
        (r"(\d+) (\w+)", "it has 2 groups; one at most is the answer: write (?:...) for those that only group."),
        (r"(a+)+$", "it takes more than 0.5 seconds on a text of"),
        (r"(?:z+)+$", "it takes more than 0.5 seconds on a text of"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_before_anything_is_loaded(pattern: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        check_pattern(pattern)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "given,message",
    [
        ({"answer_rule": "last"}, "unknown answer rule 'last', did you mean 'last_"),
        ({"answer_rule": "pattern"}, "answer_rule is pattern; give a regular expression as answer_pattern."),
        ({"answer_rule": "marker", "answer_pattern": "x"}, "answer_pattern is given, but answer_rule is marker; leave"),
        ({"answer_pattern": "("}, "answer_pattern is '('; it must be a regular expression: missing )"),
        ({"answer_pattern": 3}, "answer_pattern is 3; it must be a regular expression of at most 1000 characters."),
        ({"answer_pattern": "x" * 1001}, "it must be a regular expression of at most 1000 characters."),
        ({"task": "gsm8k", "answer_rule": "last_line"}, "task 'gsm8k' has a fixed way to read answers; leave it out"),
    ],
)  # fmt: skip
def test_settings_of_answers_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", {"task": "prompts", "data": "x.jsonl", **given})
    assert message in str(error.value)


def test_a_pattern_alone_says_that_answers_are_read_by_it() -> None:
    asked = config.resolve("arith_quick", {"task": "prompts", "data": "x.jsonl", "answer_pattern": r"= (\d+)"})
    assert (asked.answer_rule, asked.answer_pattern) == ("pattern", r"= (\d+)")
    mining = config.resolve_mining("arith_quick", {"task": "prompts", "data": "x.jsonl", "answer_rule": "last_line"})
    assert mining.as_dict()["answer_rule"] == "last_line"


def rows(folder: Path, *given: dict[str, Any]) -> DataConfig:
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return DataConfig(str(folder / "mine.jsonl"))


def test_the_task_reads_by_its_rule(tmp_path: Path) -> None:
    data = rows(tmp_path, {"prompt": "2 + 2?", "answer": 4.0})
    chosen = task("prompts", data, rule=AnswerRule("last_number"))
    (example,) = chosen.examples(1)
    assert example.answer == "4"
    assert chosen.extract("2 + 2 = 4", True, example.answer) == "4"
    assert task("prompts", data).extract("2 + 2 = 4", True, example.answer) == "4"
    assert task("prompts", data, rule=AnswerRule("marker")).extract("2 + 2 = 4", True, example.answer) is None


def test_last_number_refuses_a_gold_answer_that_is_none(tmp_path: Path) -> None:
    data = rows(tmp_path, {"prompt": "a", "answer": "4"}, {"prompt": "b"}, {"prompt": "c", "answer": "Paris"})
    with pytest.raises(TaskError, match=r"line 3: 'answer' is 'Paris', no number; answer_rule last_number compares"):
        task("prompts", data, rule=AnswerRule("last_number"))


@pytest.mark.parametrize(
    "name,row,note",
    [
        ("prompts", {"prompt": "a", "anwser": "4", "topic": "x"},
         "columns 'anwser' (did you mean 'answer'?), 'topic' are not used. Used are: prompt, answer, id."),
        ("gsm8k", {"question": "a", "answer": "#### 4", "level": 1}, "columns 'level' are not used."),
        ("mtbench", {"turns": ["a"], "category": "math", "difficulty": 1}, "columns 'difficulty' are not used."),
    ],
)  # fmt: skip
def test_columns_that_are_not_used_are_named(tmp_path: Path, name: str, row: dict[str, Any], note: str) -> None:
    data = rows(tmp_path, row)
    chosen = task(name, data)
    assert len(chosen.examples(9)) == 1
    (said,) = notes_of(chosen)
    assert said.startswith(f"data '{data}': {note}")


def test_nothing_is_said_where_every_column_is_used(tmp_path: Path) -> None:
    assert notes_of(task("prompts", rows(tmp_path, {"prompt": "a", "answer": "b", "id": 1}, {"prompt": "a"}))) == []
    assert notes_of(task("arith")) == []
