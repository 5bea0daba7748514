"""What a task is: prompts, and how to read an answer out of a generated text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from specexp.errors import TaskError, unknown
from specexp.tasks import arith, prompts


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


@dataclass(frozen=True, slots=True)
class Prompts:
    """A JSONL file of one's own (`specexp.tasks.prompts`)."""

    path: Path

    @property
    def name(self) -> str:
        return "prompts"

    def examples(self, limit: int) -> list[Example]:
        return [Example(row["id"], row["prompt"], row["answer"]) for row in prompts.read(self.path)[:limit]]

    def extract(self, text: str, finished: bool) -> str | None:
        return prompts.extract_answer(text, finished)


# From a task's name to the task, given the `data` setting.
TASKS: dict[str, Callable[[str], Task]] = {
    "arith": lambda data: Arith(),
    "prompts": lambda data: Prompts(Path(data).expanduser()),
}


def task(name: str, data: str = "") -> Task:
    """The task of this name, reading `data` where it needs a file."""
    if name not in TASKS:
        raise TaskError(unknown("task", name, TASKS))
    return TASKS[name](data)
