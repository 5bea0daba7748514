"""What a task is: prompts, and how to read an answer out of a generated text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from specexp.errors import TaskError, unknown
from specexp.tasks import arith


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt. `answer` is the gold answer in the form that `extract` returns, or None when there is none."""

    prompt_id: str
    prompt: str
    answer: str | None


class Task(Protocol):
    """Reads nothing but generated text when it looks for an answer."""

    @property
    def name(self) -> str: ...

    def examples(self, limit: int) -> list[Example]:
        """The first `limit` examples, always the same ones."""
        ...

    def extract(self, text: str, finished: bool) -> str | None:
        """The answer in a generated text; `finished` says whether it ended by itself."""
        ...


@dataclass(frozen=True, slots=True)
class Arith:
    """Seeded word problems (`specexp.tasks.arith`), from the split that no model or judge is trained on."""

    split: str = "test"

    @property
    def name(self) -> str:
        return "arith"

    def examples(self, limit: int) -> list[Example]:
        return [
            Example(f"arith-{self.split}-{p.index}", arith.prompt(p), str(p.answer))
            for p in arith.distinct(self.split, limit)
        ]

    def extract(self, text: str, finished: bool) -> str | None:
        return arith.extract_answer(text, finished)


TASKS: dict[str, Callable[[], Task]] = {"arith": Arith}


def task(name: str) -> Task:
    """The task of this name."""
    if name not in TASKS:
        raise TaskError(unknown("task", name, TASKS))
    return TASKS[name]()
