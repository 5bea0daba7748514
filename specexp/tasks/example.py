"""What every task deals in: examples of one or more turns, and how an answer is read out of a generated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]  # role: user or assistant; content


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation's user turns. `answer` is the gold answer to the last one, in the form that `extract` returns.

    `shots` are solved examples (question, answer) that come before.
    """

    prompt_id: str
    turns: tuple[str, ...]
    answer: str | None = None
    category: str = ""
    shots: tuple[tuple[str, str], ...] = ()

    def messages(self, replies: Sequence[str] = ()) -> list[Message]:
        """What a model sees at turn len(replies), where `replies` are the assistant's earlier ones."""
        found: list[Message] = []
        asked = self.turns[: len(replies) + 1]
        for question, answer in [*self.shots, *zip(asked, replies, strict=False)]:
            found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*found, {"role": "user", "content": asked[-1]}]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where a task's examples came from, as MLflow wants to know it."""

    name: str
    source: str
    digest: str  # SHA-256
    num_rows: int


class Task(Protocol):
    """Reads nothing but generated text when it looks for an answer."""

    @property
    def name(self) -> str: ...

    def examples(self, limit: int) -> list[Example]:
        """`limit` examples, always the same ones: a larger limit keeps those of a smaller one."""
        ...

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        """The answer in a generated text; `finished` says whether it ended by itself.

        `gold`, if there is one, tells which kind of answer is looked for; what it is has no influence.
        """
        ...

    def dataset(self) -> Dataset:
        """What `examples` reads."""
        ...
