"""Task `prompts`: rows of the user, in JSONL one object per line, with "prompt" and, if it can be checked, "answer".

    {"prompt": "What is 2 + 3? End with #### and the number.", "answer": "5", "id": "sum-1"}

A setting decides how an output's answer is read (`answers/rules.py`). If the gold answer is a number, numbers are
compared, else texts. Ids default to the line number; other columns are not used.
"""

from __future__ import annotations

import math

from specexp.answers import numbers
from specexp.answers.comparators import CANONICAL
from specexp.answers.rules import AnswerRule, normal
from specexp.errors import TaskError, shown
from specexp.tasks.example import Comparator, Dataset, Example
from specexp.tasks.source import DataConfig, Row, Rows, first_twice, name_of, read, text_of

KEYS = ("prompt", "answer", "id")


class Prompts:
    """The prompts of a file. The constructor reads and checks all rows."""

    name = "prompts"
    comparator: Comparator = CANONICAL

    def __init__(self, config: DataConfig, rule: AnswerRule | None = None) -> None:
        self._rule = rule or AnswerRule()
        self._rows: Rows = read(config)
        self._examples = [_example(row) for row in self._rows.rows]
        if twice := first_twice(example.prompt_id for example in self._examples):
            raise TaskError(f"{config.source}: id {shown(twice)} is given twice; every prompt needs its own.")
        self.notes = self._rows.unused(KEYS)
        if self._rule.rule == "last_number":
            self._check_numbers()

    def examples(self, limit: int) -> list[Example]:
        return self._examples[:limit]

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return self._rule.read(text, finished, gold)

    def dataset(self) -> Dataset:
        return self._rows.dataset(self.name)

    def _check_numbers(self) -> None:
        for row, example in zip(self._rows.rows, self._examples, strict=True):
            if example.answer is not None and not numbers.is_number(example.answer):
                raise TaskError(
                    f"{row.where}: 'answer' is {row.values['answer']!r}, no number; answer_rule last_number compares"
                    " numbers: give one, or choose another answer_rule."
                )


def _example(row: Row) -> Example:
    if "prompt" not in row.values:
        names = ", ".join(repr(str(name)) for name in row.values) or "nothing"
        raise TaskError(f"{row.where}: has no 'prompt', but {names}. Used are: {', '.join(KEYS)}.")
    answer = row.values.get("answer")
    endless = isinstance(answer, float) and math.isinf(answer)
    if isinstance(answer, bool) or endless or not isinstance(answer, str | int | float | None):
        raise TaskError(f"{row.where}: 'answer' is {shown(answer)}; it must be a text or a number, or be left out.")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # a column of integers with a missing value is read as floats
    gold = None if answer is None or answer != answer else normal(str(answer))
    return Example(name_of(row, ("id",), f"line-{row.number}"), (text_of(row, "prompt"),), gold)
