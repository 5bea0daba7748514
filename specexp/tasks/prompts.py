"""Task `prompts`: rows of the user, in JSONL one object per line, with "prompt" and, if it can be checked, "answer".
In place of "prompt" a row may have "messages", a conversation (`conversations.py`).

    {"prompt": "What is 2 + 3? End with #### and the number.", "answer": "5", "id": "sum-1"}

Settings decide how an output's answer is read (`answers/rules.py`) and compared (`answers/kinds.py`): by default as a
number if the gold answer is one, else as a text. Ids default to the line number; other columns are not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from specexp.answers import numbers
from specexp.answers.comparators import CANONICAL, AnswerKind
from specexp.answers.rules import AnswerRule, normal
from specexp.errors import TaskError, shown
from specexp.tasks import conversations
from specexp.tasks.conversations import NO_SHOTS, Shots
from specexp.tasks.example import Comparator, Dataset, Example, checked
from specexp.tasks.source import DataConfig, Row, Rows, name_of, read, text_of

KEYS = ("prompt", "messages", "answer", "id")


class Prompts:
    """The prompts of a file. The constructor reads and checks all rows."""

    name = "prompts"

    def __init__(self, config: DataConfig, rule: AnswerRule | None = None, shots: Shots = NO_SHOTS) -> None:
        self._rule, self._shots = rule or AnswerRule(), shots
        self._rows: Rows = read(config)
        self.comparator: Comparator = self._rule.kind or CANONICAL
        self._examples = checked(self._rows.rows, lambda row: _example(row, self._rule.kind))
        if (twice := self._examples.twice) is not None:
            raise TaskError(f"{config.source}: id {shown(twice)} is given twice; every prompt needs its own.")
        self.notes = self._rows.unused(KEYS)
        if self._rule.rule == "last_number" and self._rule.kind is None:
            self._check_numbers()
        self._asked = shots.precede(self._examples)

    def examples(self, limit: int) -> Sequence[Example]:
        return self._asked[:limit]

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return self._rule.read(text, finished, gold)

    def dataset(self) -> Dataset:
        return self._shots.mark(self._rows.dataset(self.name))

    def _check_numbers(self) -> None:
        for row, example in zip(self._rows.rows, self._examples, strict=True):
            if example.answer is not None and not numbers.is_number(example.answer):
                raise TaskError(
                    f"{row.where}: 'answer' is {row.values['answer']!r}, no number; answer_rule last_number compares"
                    " numbers: give one, or choose another answer_rule."
                )


def _example(row: Row, kind: AnswerKind | None) -> Example:
    is_talk = conversations.is_one(row)
    if is_talk and (prompt := row.values.get("prompt")) is not None and prompt == prompt:
        raise TaskError(f"{row.where}: has 'prompt' and 'messages'; give one of them.")
    if "prompt" not in row.values and not is_talk:
        names = ", ".join(repr(str(name)) for name in row.values) or "nothing"
        raise TaskError(f"{row.where}: has no 'prompt', but {names}. Used are: {', '.join(KEYS)}.")
    gold = _gold(row) if kind is None else _gold_of_kind(row, kind)
    name = name_of(row, ("id",), f"line-{row.number}")
    if not is_talk:
        return Example(name, (text_of(row, "prompt"),), gold)
    talk = conversations.conversation(row)
    if not talk.question:
        raise TaskError(
            f"{row.where}: the last of 'messages' is the assistant's; end with the user's, which is answered."
        )
    return Example(name, (talk.question,), gold, context=talk.exchanges, system=talk.system)


def _gold(row: Row) -> str | None:
    """The gold answer of a row, in canonical form. Raises TaskError."""
    answer = row.values.get("answer")
    endless = isinstance(answer, float) and math.isinf(answer)
    if isinstance(answer, bool) or endless or not isinstance(answer, str | int | float | None):
        raise TaskError(f"{row.where}: 'answer' is {shown(answer)}; it must be a text or a number, or be left out.")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # a column of integers with a missing value is read as floats
    return None if answer is None or answer != answer else normal(str(answer))


def _gold_of_kind(row: Row, kind: AnswerKind) -> str | None:
    """Likewise, as an answer of this kind. A JSON value may be given as such, and numbers as a list."""
    answer = row.values.get("answer")
    if answer is None or answer != answer:
        return None
    if kind.name == "json" and not isinstance(answer, str):
        answer = json.dumps(answer)
    elif kind.name == "numbers" and isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    elif isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    given = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    result = numbers.whole(str(answer)) if kind.name == "number" else kind.read(str(answer))
    if not given or result is None:
        raise TaskError(
            f"{row.where}: 'answer' is {shown(row.values['answer'])}; with comparator {kind.name} it must be"
            f" {kind.what}, or be left out."
        )
    return result
