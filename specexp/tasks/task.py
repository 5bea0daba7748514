"""Returns the task of a given name and settings."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from specexp.answers.comparators import CANONICAL
from specexp.answers.rules import AnswerRule
from specexp.errors import TaskError, unknown
from specexp.sandbox.sandbox import Sandbox
from specexp.tasks import arith, questions
from specexp.tasks.defaults import NO_EXECUTION, SANDBOX
from specexp.tasks.example import Comparator, Dataset, Example, Task
from specexp.tasks.gsm8k import GSM8K
from specexp.tasks.programs import PROGRAM_TASKS, ArithCode, Programs
from specexp.tasks.prompts import Prompts
from specexp.tasks.questions import Questions
from specexp.tasks.source import DataConfig

MOST_GENERATED = 100_000  # the most prompts of a task that generates them


@dataclass(frozen=True, slots=True)
class Arith:
    """Seeded word problems (`specexp.tasks.arith`); no model or judge is trained on the split `test`."""

    split: str = "test"

    @property
    def name(self) -> str:
        return "arith"

    @property
    def comparator(self) -> Comparator:
        return CANONICAL

    def examples(self, limit: int) -> list[Example]:
        _check_limit(limit, self)
        return [
            Example(f"arith-{self.split}-{p.index}", (arith.prompt(p),), str(p.answer))
            for p in arith.distinct(self.split, limit)
        ]

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return arith.extract_answer(text, finished)

    def dataset(self) -> Dataset:
        return _generated(self, f"specexp.tasks.arith split {self.split}")


@dataclass(frozen=True, slots=True)
class Toy:
    """Short seeded digit strings for the toy pair; they have no gold answers."""

    @property
    def name(self) -> str:
        return "toy"

    @property
    def comparator(self) -> Comparator:
        return CANONICAL

    def examples(self, limit: int) -> list[Example]:
        _check_limit(limit, self)
        rng = random.Random("toy")
        return [Example(f"toy-{i}", (" ".join(str(rng.randrange(10)) for _ in range(8)),)) for i in range(limit)]

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return None

    def dataset(self) -> Dataset:
        return _generated(self, "specexp.tasks.task Toy")


def _check_limit(limit: int, task: Task) -> None:
    if limit > MOST_GENERATED:
        raise TaskError(
            f"{limit} prompts of task '{task.name}' are asked for; it makes at most {MOST_GENERATED:,}: lower limit or"
            " skip."
        )


def _generated(task: Task, source: str) -> Dataset:
    """Describe a generator; its hash is that of its first hundred examples."""
    first = task.examples(100)
    text = "\n".join(f"{x.prompt_id} {x.turns} {x.answer}" for x in first)
    return Dataset(task.name, source, hashlib.sha256(text.encode()).hexdigest(), len(first))


TASKS: dict[str, Callable[[DataConfig, int, str], Task]] = {
    "arith": lambda data, shots, split: Arith(split),
    "gsm8k": lambda data, shots, split: GSM8K(data, shots),
    "mtbench": lambda data, shots, split: Questions("mtbench", data, questions.MT_BENCH),
    "prompts": lambda data, shots, split: Prompts(data),
    "spec_bench": lambda data, shots, split: Questions("spec_bench", data),
    "toy": lambda data, shots, split: Toy(),
    **PROGRAM_TASKS,
}


def task(
    name: str, data: DataConfig | None = None, shots: int = 0, split: str = "test", rule: AnswerRule | None = None,
    execute: str = NO_EXECUTION,
) -> Task:  # fmt: skip
    """Return the task of this name. It reads `data` if it needs any; `split` applies to tasks that generate problems,
    and `rule` to `prompts`, where answers may be read in several ways. Programs run only if `execute` is `sandbox`.

    Raises TaskError.
    """
    if name not in TASKS:
        raise TaskError(unknown("task", name, TASKS))
    data = data or DataConfig("")
    if name in PROGRAM_TASKS:
        return PROGRAM_TASKS[name](data, shots, split, Sandbox().tried() if execute == SANDBOX else None)
    return Prompts(data, rule) if name == "prompts" else TASKS[name](data, shots, split)


def notes_of(task: Task) -> list[str]:
    """Return the notes on a task's rows for the user."""
    return task.notes if isinstance(task, Prompts | GSM8K | Questions | Programs | ArithCode) else []
