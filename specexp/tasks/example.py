"""The common types of tasks: examples of one or more turns, and the interface that reads answers from texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]  # role: user or assistant; content


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation's user turns. `answer` is the gold answer to the last one, in the form that `extract` returns.

    `shots` are solved examples (question, answer) that precede them.
    """

    prompt_id: str
    turns: tuple[str, ...]
    answer: str | None = None
    category: str = ""
    shots: tuple[tuple[str, str], ...] = ()

    def messages(self, replies: Sequence[str] = ()) -> list[Message]:
        """Return the messages at turn len(replies), where `replies` are the assistant's earlier answers."""
        result: list[Message] = []
        asked = self.turns[: len(replies) + 1]
        for question, answer in [*self.shots, *zip(asked, replies, strict=False)]:
            result += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*result, {"role": "user", "content": asked[-1]}]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where a task's examples came from, with the fields of an MLflow dataset."""

    name: str
    source: str
    digest: str  # SHA-256
    num_rows: int


class Comparator(Protocol):
    """Says when two answers of a task are equal; its answers are texts, as `Task.extract` returns them."""

    @property
    def name(self) -> str: ...

    def equal(self, answer: str, other: str, example: Example) -> bool:
        """Return whether `answer` says the same as `other`, the gold answer or that of another output to `example`."""
        ...


class Task(Protocol):
    """A source of examples. Its answers are read from generated text alone."""

    @property
    def name(self) -> str: ...

    @property
    def comparator(self) -> Comparator:
        """What an answer is compared by, with the gold answer and with other answers."""
        ...

    def examples(self, limit: int) -> list[Example]:
        """Return `limit` examples, always the same ones: a larger limit keeps those of a smaller one."""
        ...

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        """Return the answer in a generated text; `finished` is True if the text ended by itself.

        `gold`, if given, decides which kind of answer is read; its value has no influence.
        """
        ...

    def dataset(self) -> Dataset:
        """Describe what `examples` reads."""
        ...
