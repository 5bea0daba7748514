"""Returns the task of a given name and settings."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from specexp.errors import TaskError, unknown
from specexp.tasks import arith, gsm8k, questions
from specexp.tasks.answers import AnswerRule
from specexp.tasks.defaults import HARNESS
from specexp.tasks.example import Dataset, Example, Task
from specexp.tasks.gsm8k import GSM8K
from specexp.tasks.harness import HarnessTask
from specexp.tasks.prompts import Prompts
from specexp.tasks.questions import Questions
from specexp.tasks.shots import NO_SHOTS, Shots, from_rows
from specexp.tasks.source import DataConfig

MOST_GENERATED = 100_000  # the most prompts of a task that generates them


@dataclass(frozen=True, slots=True)
class Arith:
    """Seeded word problems (`specexp.tasks.arith`); no model or judge is trained on the split `test`."""

    split: str = "test"
    shots: Shots = NO_SHOTS

    @property
    def name(self) -> str:
        return "arith"

    def examples(self, limit: int) -> list[Example]:
        _check_limit(limit, self)
        return [
            Example(f"arith-{self.split}-{p.index}", (arith.prompt(p),), str(p.answer), shots=self.shots.pairs)
            for p in arith.distinct(self.split, limit)
        ]

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return arith.extract_answer(text, finished)

    def dataset(self) -> Dataset:
        return self.shots.mark(_generated(self, f"specexp.tasks.arith split {self.split}"))


@dataclass(frozen=True, slots=True)
class Toy:
    """Short seeded digit strings for the toy pair; they have no gold answers."""

    shots: Shots = NO_SHOTS

    @property
    def name(self) -> str:
        return "toy"

    def examples(self, limit: int) -> list[Example]:
        _check_limit(limit, self)
        rng = random.Random("toy")
        texts = [" ".join(str(rng.randrange(10)) for _ in range(8)) for _ in range(limit)]
        return [Example(f"toy-{i}", (text,), shots=self.shots.pairs) for i, text in enumerate(texts)]

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return None

    def dataset(self) -> Dataset:
        return self.shots.mark(_generated(self, "specexp.tasks.task Toy"))


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


TASKS: dict[str, Callable[[DataConfig, Shots, str], Task]] = {
    "arith": lambda data, shots, split: Arith(split, shots),
    "gsm8k": lambda data, shots, split: GSM8K(data, shots),
    "mtbench": lambda data, shots, split: Questions("mtbench", data, questions.MT_BENCH, shots),
    "prompts": lambda data, shots, split: Prompts(data, shots=shots),
    "spec_bench": lambda data, shots, split: Questions("spec_bench", data, shots=shots),
    "toy": lambda data, shots, split: Toy(shots),
}
SHOTS_SEED = 1  # of arith's own solved examples, which come from the split train


def task(
    name: str, data: DataConfig | None = None, shots: int = 0, split: str = "test", rule: AnswerRule | None = None,
    shots_data: DataConfig | None = None,
) -> Task:  # fmt: skip
    """Return the task of this name. It reads `data` if it needs any; `split` applies to tasks that generate problems,
    and `rule` to `prompts`, where answers may be read in several ways. `shots` solved examples precede each prompt: the
    first rows of `shots_data`, or the task's own.

    Raises TaskError.
    """
    if name.startswith(HARNESS):
        return HarnessTask(name, data or DataConfig(""), shots)
    if name not in TASKS:
        raise TaskError(unknown("task", name, TASKS))
    data, solved = data or DataConfig(""), _shots(name, shots, shots_data)
    return Prompts(data, rule, solved) if name == "prompts" else TASKS[name](data, solved, split)


def _shots(name: str, count: int, rows: DataConfig | None) -> Shots:
    if not count:
        return NO_SHOTS
    if name == "gsm8k":
        return gsm8k.own_shots(count) if rows is None else from_rows(rows, count, gsm8k.ask, gsm8k.worded)
    if name == "arith" and (rows is None or not rows.source):
        made = arith.distinct(rows.split if rows else "train", count, SHOTS_SEED)
        return Shots(tuple((arith.prompt(problem), problem.solution) for problem in made))
    if rows is None:
        raise TaskError(f"task '{name}' has no solved examples of its own; give shots_data.")
    return from_rows(rows, count)


def notes_of(task: Task) -> list[str]:
    """Return the notes on a task's rows for the user."""
    return task.notes if isinstance(task, Prompts | GSM8K | Questions | HarnessTask) else []


def stops_of(task: Task) -> tuple[str, ...]:
    """Return the strings that end the outputs of a task by itself; those that begin in the prompt do not."""
    return task.stop if isinstance(task, HarnessTask) else ()
