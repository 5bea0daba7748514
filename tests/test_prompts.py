"""Task `prompts`: answers are read strictly, and only where the text says that one follows."""

from __future__ import annotations

import pytest

from specexp.tasks.prompts import extract_answer, normal


@pytest.mark.parametrize(
    "text,finished,answer",
    [
        ("so\n#### 1,234", True, "1234"),
        ("The final answer is $18.", True, "18"),
        ("The final answer is: 3.5", True, "3.5"),
        ("the final answer is 7\nor so", False, "7"),
        ("#### 4", False, None),  # the answer may go on
        ("#### 4\nno, #### 5 apples", True, "5 apples"),
        ("the answer is 42", True, None),
        ("#### \n12", True, None),
        ("####", True, None),
    ],
)
def test_extraction(text: str, finished: bool, answer: str | None) -> None:
    assert extract_answer(text, finished) == answer


@pytest.mark.parametrize("gold,bare", [("1,000,000", "1000000"), ("a, b", "a, b"), (" 12. ", "12"), ("$5", "5")])
def test_gold_and_given_answers_are_brought_to_one_form(gold: str, bare: str) -> None:
    assert normal(gold) == normal(normal(gold)) == bare
