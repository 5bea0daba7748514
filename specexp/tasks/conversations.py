"""What precedes a question: the rest of a conversation, and solved examples.

A row may be a conversation, a list of messages in their order, with the assistant's answers that are given:

    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"},
                  {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 4 more?"}]}

The last message is the user's, and is answered; what precedes it is its context.

Solved examples precede every prompt of a task: its own, or the first rows of a source. Such a row has `prompt` or
`question`, and `answer`, which is shown whole; or `messages` that end with the assistant's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from specexp.errors import TaskError, shown
from specexp.reading import BOM
from specexp.tasks.example import Dataset, Examples
from specexp.tasks.source import DataConfig, Row, read, text_of

KEY = "messages"
ROLES = ("system", "user", "assistant")
QUESTIONS = ("prompt", "question")
ANSWER = "answer"
Wording = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The system message ("" if there is none), the exchanges (question, answer), and the question after them, which is
    "" if the last message is an answer."""

    system: str
    exchanges: tuple[tuple[str, str], ...]
    question: str


def is_one(row: Row) -> bool:
    """True if a row has messages. Null counts as missing: in a table they are the same."""
    value = row.values.get(KEY)
    return value is not None and value == value


def conversation(row: Row) -> Conversation:
    """Return a row's messages. Raises TaskError that names the message and the rule."""
    given = row.values[KEY]
    if not isinstance(given, list) or not given:
        raise TaskError(f"{row.where}: '{KEY}' must be a list of one message or more, got {shown(given)}.")
    said = [_message(row, number, each) for number, each in enumerate(given, 1)]
    system = said.pop(0)[1] if said[0][0] == "system" else ""
    first = len(given) - len(said) + 1
    if not said:
        raise TaskError(f"{row.where}: '{KEY}' holds a system message alone; add the user's.")
    for number, (role, _) in enumerate(said):
        if role != ROLES[1 + number % 2]:
            raise TaskError(
                f"{row.where}: message {first + number} is the {role}'s, but the {ROLES[1 + number % 2]}'s is next: a"
                " system message may come first, and then user and assistant take turns."
            )
    texts = [text for _, text in said]
    return Conversation(system, tuple(zip(texts[::2], texts[1::2], strict=False)), texts[-1] if len(texts) % 2 else "")


def _message(row: Row, number: int, given: Any) -> tuple[str, str]:
    """The role and the text of one message."""
    role, content = (given.get("role"), given.get("content")) if isinstance(given, dict) else (None, None)
    if role not in ROLES:
        raise TaskError(
            f"{row.where}: message {number} must have a role of {', '.join(ROLES)} and a content, got {shown(given)}."
        )
    if not isinstance(content, str) or not content.strip():
        raise TaskError(
            f"{row.where}: the content of message {number} must be a text that is not empty, got {shown(content)}."
        )
    return role, content.removeprefix(BOM)


@dataclass(frozen=True, slots=True)
class Shots:
    """The pairs (question, answer) in their order; `digest` is the SHA-256 of the rows they are from, or ""."""

    pairs: tuple[tuple[str, str], ...] = ()
    digest: str = ""

    def precede(self, examples: Examples) -> Examples:
        """Return the examples with these before them, without those that are shown. Raises TaskError if none is left.

        A task shows and asks from one source only if a person says so: its own examples are from another.
        """
        if not self.pairs:
            return examples
        shown = {question for question, _ in self.pairs}
        kept = examples.at(array("q", (i for i, example in enumerate(examples) if example.turns[-1] not in shown)))
        if examples and not kept:
            raise TaskError("every prompt is among the solved examples; lower shots, or name other shots_data.")
        return Examples(lambda index: replace(kept[index], shots=self.pairs), len(kept))

    def mark(self, dataset: Dataset) -> Dataset:
        """Return the dataset with a hash that the rows of the examples enter, too."""
        if not self.digest:
            return dataset
        both = hashlib.sha256(f"{dataset.digest} {self.digest}".encode()).hexdigest()
        return replace(dataset, source=f"{dataset.source}, after {len(self.pairs)} solved examples", digest=both)


NO_SHOTS = Shots()


def as_it_is(text: str) -> str:
    return text


def from_rows(config: DataConfig, count: int, ask: Wording = as_it_is, answer: Wording = as_it_is) -> Shots:
    """Return the first `count` rows of a source, their questions and answers worded as the task has them.

    Raises TaskError.
    """
    rows = read(config)
    if len(rows.rows) < count:
        raise TaskError(f"shots is {count}, but shots_data '{config}' has {len(rows.rows)} rows; lower it.")
    pairs: list[tuple[str, str]] = []
    for row in rows.rows[:count]:
        pairs += [(ask(question), answer(said)) for question, said in _pairs(row)]
    return Shots(tuple(pairs), rows.digest)


def _pairs(row: Row) -> list[tuple[str, str]]:
    if is_one(row):
        said = conversation(row)
        if said.system or said.question:
            raise TaskError(
                f"{row.where}: '{KEY}' of a solved example must be the user's and the assistant's in"
                " turn, without a system message; set system for one."
            )
        return list(said.exchanges)
    key = next((key for key in QUESTIONS if key in row.values), None)
    if key is None or ANSWER not in row.values:
        names = ", ".join(repr(str(name)) for name in row.values) or "nothing"
        raise TaskError(
            f"{row.where}: a solved example has {' or '.join(QUESTIONS)}, and {ANSWER}, but this row has {names}."
        )
    answer = row.values[ANSWER]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return [(text_of(row, key), str(answer))]
    return [(text_of(row, key), text_of(row, ANSWER))]
