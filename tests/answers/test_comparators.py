"""Kinds of answers: what each reads from texts that models write, exactly or not at all, and what it calls equal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from specexp import config
from specexp.answers.choices import ChoiceAnswer
from specexp.answers.comparators import NumberAnswer, NumbersAnswer, TextAnswer
from specexp.answers.json_values import JsonAnswer
from specexp.answers.kinds import kind_of
from specexp.answers.mathematics import boxed
from specexp.answers.own_function import OwnFunction
from specexp.answers.rules import AnswerRule
from specexp.errors import ConfigError, TaskError
from specexp.tasks.source import DataConfig
from specexp.tasks.task import task


@pytest.mark.parametrize(
    "text,finished,letter",
    [
        ("Let me see. The answer is (C).", True, "C"),
        ("The answer is C", True, "C"),
        ("the answer is: **D**", True, "D"),
        ("Answer: B", True, "B"),
        ("**Answer:** (J) none", True, "J"),
        ("**Answer**: B", True, "B"),
        (r"So $\boxed{E}$.", True, "E"),
        (r"So \boxed{\text{F}}", True, "F"),
        ("The answer is option G because it fits.", True, "G"),
        ("The answer is (A). Wait, no. The answer is (B).", True, "B"),
        ("The answer is (B). That answer is correct.", True, "B"),
        ("Both fit.\n\n(H)", True, "H"),
        ("Both fit.\nH.", True, "H"),
        ("Both fit.\n(H) a horse", True, "H"),
        ("C. Paris", True, "C"),
        ("Once upon a time.\nC. Paris", True, None),  # may be a name
        ("The answer is A good one", True, None),
        ("The answer is A because it is longer", True, "A"),
        ("The answer is I think B", True, None),
        ("The answer is A or B", True, None),
        ("The answer is (A) and (B)", True, None),
        ("The answer is Absurd", True, None),
        ("The answer is K", True, None),
        ("The answer is c", True, None),
        ("I like A", True, None),
        ("", True, None),
        ("The answer is B", False, None),  # it may go on
        ("The answer is (B)", False, "B"),
        ("The answer is B. And", False, "B"),
        ("B", False, None),
    ],
)
def test_a_choice_is_a_letter_that_the_text_names_as_its_answer(text: str, finished: bool, letter: str | None) -> None:
    assert ChoiceAnswer().last(text, finished) == letter
    assert AnswerRule(kind=ChoiceAnswer()).read(text, finished, None) == letter


@pytest.mark.parametrize(
    "text,numbers",
    [
        ("1, 2 and 3", "1, 2, 3"),
        ("{3, 2, 1, 2}", "1, 2, 3"),
        (r"$\{3, \frac{1}{2}\}$", "0.5, 3"),
        ("x = -2 or x = 10", "-2, 10"),
        ("The solutions are 1 and $2.50.", "1, 2.5"),
        (r"So: \boxed{4; 5}", "4, 5"),
        ("[7]", "7"),
        ("1, two", None),
        ("1,234, 5", None),  # one number or two
        ("at 2:30", None),
        ("none", None),
        ("{}", None),
    ],
)
def test_a_set_of_numbers_is_read_whole_or_not_at_all(text: str, numbers: str | None) -> None:
    assert NumbersAnswer().read(text) == numbers
    assert NumbersAnswer().last(f"First 9.\n{text}", True) == numbers
    assert NumbersAnswer().last(f"First 9.\n{text}", False) is None


@pytest.mark.parametrize(
    "text,finished,value",
    [
        ('{"b": 1.0, "a": [true, null]}', True, '{"a":[true,null],"b":1}'),
        ('Here it is:\n```json\n{"a": 1}\n```', True, '{"a":1}'),
        ('First {"a": 1}, then {"a": {"b": 2}}. Done', True, '{"a":{"b":2}}'),
        ("The set {x} is not, [1, 2] is", True, "[1,2]"),
        ('"Paris"', True, '"Paris"'),
        ("1e2", True, "100"),
        ('{"a": 1', True, None),
        ('{"a": 1, "a": 2}', True, None),
        ('{"a": NaN}', True, None),
        ("[1e999]", True, None),
        ("[" * 100_000, True, None),
        ("Paris", True, None),
        ('{"a": 1}', False, '{"a":1}'),
        ("12", False, None),  # it may go on
    ],
)
def test_json_values_have_one_text(text: str, finished: bool, value: str | None) -> None:
    assert JsonAnswer().last(text, finished) == value


def test_json_values_are_compared_by_value() -> None:
    kind = JsonAnswer()
    one = kind.read('{"a": 1, "b": [2.50]}')
    assert one == kind.read('{ "b" : [2.5], "a" : 1.0 }')
    assert one != kind.read('{"a": true, "b": [2.5]}')
    assert kind.read("[1, 2]") != kind.read("[2, 1]")


@pytest.mark.parametrize(
    "text,content",
    [
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{1} and \boxed{2}", "2"), (r"\boxed {x}", "x"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed{1} and \boxed{2", "1"), (r"so \boxed{\{1} there", r"\{1"),
        ("none", None),
    ],
)  # fmt: skip
def test_the_last_closed_box_is_read(text: str, content: str | None) -> None:
    assert boxed(text) == content


def test_texts_and_numbers_are_read_where_the_rule_says() -> None:
    text = "It is red.\nThe final answer is Blue 7.\nThat is all."
    assert AnswerRule("auto", kind=TextAnswer()).read(text, True, None) == "Blue 7."
    assert AnswerRule("last_line", kind=TextAnswer()).read(text, True, None) == "That is all."
    assert AnswerRule("pattern", r"It is (\w+)\.", TextAnswer()).read(text, True, None) == "red"
    assert AnswerRule("marker", kind=TextAnswer()).read("It is red.", True, None) is None
    assert AnswerRule("auto", kind=TextAnswer()).read("The final answer is Blu", False, None) is None
    assert AnswerRule("auto", kind=NumberAnswer()).read("I have 5 and then 1,234", True, "red") == "1234"
    # Of a heading that is no answer, the kind's own way is taken; by the rule marker, none is.
    heading = "#### Answer\nThe answer is (D)"
    assert AnswerRule("auto", kind=ChoiceAnswer()).read(heading, True, None) == "D"
    assert AnswerRule("marker", kind=ChoiceAnswer()).read(heading, True, None) is None
    assert AnswerRule("auto", kind=JsonAnswer()).read('{"a": 1}\n#### {\n"a": 2}', True, None) == '{"a":2}'


# A person's own function.


@pytest.fixture
def similar(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "similar_words.py").write_text(
        "def share(answer, gold):\n"
        "    said, asked = set(answer.split()), set(gold.split())\n"
        "    return len(said & asked) / len(said | asked)\n\n"
        "def begins(answer, gold):\n    return gold.startswith(answer)\n\n"
        "def breaks(answer, gold):\n    return 1 / 0\n\n"
        "NUMBER = 3\n"
    )
    monkeypatch.delitem(sys.modules, "similar_words", raising=False)


def test_a_function_of_ones_own_says_what_is_equal(similar: None) -> None:
    kind = kind_of("similar_words:share", 0.5)
    assert kind is not None
    assert kind.equal("a b", "a b c", None)
    assert not kind.equal("a", "a b c", None)
    begins = kind_of("similar_words:begins", 99)
    assert begins is not None
    assert begins.equal("a", "a b", None)
    assert not begins.equal("a b", "a", None), "it is called with the answer, then the gold answer"


def test_what_cannot_be_called_is_refused_by_name(similar: None) -> None:
    for name, words in {
        "no_such_thing:f": "comparator 'no_such_thing:f': module 'no_such_thing' cannot be imported (ModuleNotF",
        "similar_words:none": "module 'similar_words' has no function 'none'",
        "similar_words:NUMBER": "module 'similar_words' has no function 'NUMBER'",
    }.items():
        with pytest.raises(TaskError) as error:
            kind_of(name)
        assert words in str(error.value)
    broken = kind_of("similar_words:breaks")
    assert broken is not None
    with pytest.raises(
        TaskError, match=r"comparator 'similar_words:breaks' failed \(ZeroDivisionError: division by zero"
    ):
        broken.equal("a", "b", None)


@pytest.mark.parametrize(
    "said,equal", [(True, True), (np.bool_(False), False), (0.5, True), (np.float32(0.4), False), (1, True)]
)
def test_what_a_function_may_return(said: Any, equal: bool) -> None:
    assert OwnFunction(lambda answer, gold: said, "m:f", 0.5).equal("a", "b", None) is equal


@pytest.mark.parametrize("said", ["0.7", None, float("nan"), []])
def test_what_a_function_may_not_return(said: Any) -> None:
    with pytest.raises(TaskError, match="it must return True, False or a number"):
        OwnFunction(lambda answer, gold: said, "m:f", 0.5).equal("a", "b", None)


# Settings and rows.


@pytest.mark.parametrize(
    "given,words",
    [
        (
            {"comparator": "numberx"},
            "unknown comparator 'numberx', did you mean 'number'? Known: auto, choice, json, math,",
        ),
        ({"comparator": "a:b:c"}, "unknown comparator 'a:b:c'"),
        ({"comparator": 3}, "unknown comparator ''"),
        (
            {"comparator": "text", "answer_rule": "last_number"},
            "answer_rule is last_number, but comparator is text; set",
        ),
        (
            {"min_similarity": 0.7},
            "min_similarity is 0.7, but comparator is auto, which has no similarity; leave it out",
        ),
        ({"task": "gsm8k", "comparator": "text"}, "comparator: task 'gsm8k' has a fixed way to read answers; leave it"),
        ({"prompt_tokens": 9000}, "prompt_tokens is 9000, but task 'prompts' has prompts of its own; leave it out."),
    ],
)
def test_comparators_that_do_not_fit_are_refused(given: dict[str, Any], words: str) -> None:
    settings = {"task": "prompts", **given}
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", settings if settings["task"] == "gsm8k" else {"data": "x.jsonl", **settings})
    assert words in str(error.value)


def test_a_comparator_is_part_of_the_hash_and_its_default_is_not() -> None:
    def hashed(**more: Any) -> str:
        return config.resolve("arith_quick", {"task": "prompts", "data": "x.jsonl", **more}).hash

    assert hashed() == hashed(comparator="auto")
    assert len({hashed(), hashed(comparator="text"), hashed(comparator="json"), hashed(comparator="a:b")}) == 4
    similar = hashed(comparator="a:b", min_similarity=0.5), hashed(comparator="a:b", min_similarity=0.6)
    assert similar[0] == hashed(comparator="a:b") != similar[1]
    mining = config.resolve_mining("arith_quick", {"task": "prompts", "data": "x.jsonl", "comparator": "json"})
    assert mining.as_dict()["comparator"] == "json"
    assert mining.hash != config.resolve_mining("arith_quick", {"task": "prompts", "data": "x.jsonl"}).hash


def own(workplace: Path, comparator: str, *answers: Any) -> list[str | None]:
    """The gold answers of rows with these answers."""
    rows = [{"prompt": "?", "answer": answer} for answer in answers]
    (workplace / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = task("prompts", DataConfig("own.jsonl"), rule=AnswerRule(kind=kind_of(comparator)))
    assert chosen.comparator.name == ("canonical text" if comparator == "auto" else comparator)
    return [example.answer for example in chosen.examples(9)]


def test_gold_answers_are_of_the_comparators_kind(workplace: Path) -> None:
    assert own(workplace, "choice", "C", "(D)", None) == ["C", "D", None]
    assert own(workplace, "numbers", "2 and 1", [3, 0.5], 7) == ["1, 2", "0.5, 3", "7"]
    assert own(workplace, "json", {"b": 1, "a": 2}, "[1.0]", True, 3) == ['{"a":2,"b":1}', "[1]", "true", "3"]
    assert own(workplace, "text", " The $1,000 ", 5) == ["The $1,000", "5"]
    assert own(workplace, "number", "$1,000", 5.0) == ["1000", "5"]
    assert own(workplace, "auto", "The $1,000", 5.0) == ["The $1000", "5"]
    for comparator, answer, words in (
        ("choice", "K", "'answer' is 'K'; with comparator choice it must be a letter from A to J, or be left out."),
        ("choice", ["A"], "with comparator choice it must be a letter"),
        ("number", "Paris", "with comparator number it must be a number"),
        ("numbers", "1,234", "it must be numbers such as 1, 2 and 1/3, with a space after each comma"),
        ("json", "{", "it must be a JSON value"),
    ):
        with pytest.raises(TaskError) as error:
            own(workplace, comparator, answer)
        assert words in str(error.value)
        assert "own.jsonl, line 1" in str(error.value)


# Expressions.


def test_without_its_package_math_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "math_verify", missing)
    with pytest.raises(TaskError) as error:
        kind_of("math")
    assert str(error.value) == (
        "comparator math needs the package 'math-verify', which is not installed: pip install 'specexp[math]'."
    )


def test_expressions_are_compared_by_value() -> None:
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    kind = kind_of("math")
    assert kind is not None
    for answer, gold, equal in (
        (r"\frac{1}{2}", "0.5", True), ("x(x+2)", "x^2 + 2x", True), (r"\{1, 2\}", r"\{2, 1\}", True),
        (r"\frac{1}{2}", r"\frac{1}{3}", False), ("x + 1", "x + 2", False), ("(1, 2)", "(2, 1)", False),
        (r"\text{east}", r"\text{east}", True), ("((", "1", False),
    ):  # fmt: skip
        assert kind.equal(answer, gold, None) is equal, (answer, gold)
    assert kind.last(r"Thus \boxed{\frac{3}{4}}", False) == r"\frac{3}{4}"
    assert kind.last("Thus\nx + 1.", True) == "x + 1"
    assert kind.last("Thus\nx + 1.", False) is None
