"""Solved examples that precede every prompt of a task: its own, or the first rows of a source.

A row has `prompt` or `question`, and `answer`, which is shown whole; or `messages` that end with the assistant's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specexp.errors import TaskError
from specexp.tasks import conversations
from specexp.tasks.example import Dataset, Example
from specexp.tasks.source import DataConfig, Row, read, text_of

QUESTIONS = ("prompt", "question")
ANSWER = "answer"
Wording = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Shots:
    """The pairs (question, answer) in their order; `digest` is the SHA-256 of the rows they are from, or ""."""

    pairs: tuple[tuple[str, str], ...] = ()
    digest: str = ""

    def precede(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples with these before them, without those that are shown. Raises TaskError if none is left.

        A task shows and asks from one source only if a person says so: its own examples are from another.
        """
        if not self.pairs:
            return list(examples)
        shown = {question for question, _ in self.pairs}
        result = [replace(example, shots=self.pairs) for example in examples if example.turns[-1] not in shown]
        if examples and not result:
            raise TaskError("every prompt is among the solved examples; lower shots, or name other shots_data.")
        return result

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
    if conversations.is_one(row):
        said = conversations.conversation(row)
        if said.system or said.question:
            raise TaskError(
                f"{row.where}: '{conversations.KEY}' of a solved example must be the user's and the assistant's in"
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
