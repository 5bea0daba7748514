"""Returns the task of a given name and settings."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specexp.answers.comparators import CANONICAL
from specexp.answers.rules import AnswerRule, marked
from specexp.errors import TaskError, unknown
from specexp.sandbox.sandbox import Sandbox
from specexp.tasks import arith, gsm8k, long_prompts, questions
from specexp.tasks.benchmarks import MathProblems, MMLUPro
from specexp.tasks.conversations import NO_SHOTS, Shots, from_rows
from specexp.tasks.defaults import HARNESS, NO_EXECUTION, SANDBOX
from specexp.tasks.example import (
    Comparator,
    Dataset,
    Example,
    Examples,
    Task,
    checked,
    generated,
    recent_examples,
)
from specexp.tasks.gsm8k import GSM8K
from specexp.tasks.harness import HarnessTask
from specexp.tasks.programs import PROGRAM_TASKS, ArithCode, Programs
from specexp.tasks.prompts import Prompts
from specexp.tasks.questions import Questions
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

    @property
    def comparator(self) -> Comparator:
        return CANONICAL

    def examples(self, limit: int) -> Sequence[Example]:
        _check_limit(limit, self)
        return generated(arith.distinct_stream(self.split, limit), self._made, self._example)

    def _made(self, index: int) -> arith.Problem:
        return next(arith.problems(self.split, start=index))

    def _example(self, problem: arith.Problem) -> Example:
        name = f"arith-{self.split}-{problem.index}"
        return Example(name, (arith.prompt(problem),), str(problem.answer), shots=self.shots.pairs)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return arith.extract_answer(text, finished)

    def dataset(self) -> Dataset:
        return self.shots.mark(_generated(self, f"specexp.tasks.arith split {self.split}"))


@dataclass(frozen=True, slots=True)
class LongPrompts:
    """Long texts with a question (`specexp.tasks.long_prompts`), of about `num_tokens` tokens."""

    num_tokens: int
    split: str = "test"
    shots: Shots = NO_SHOTS

    @property
    def name(self) -> str:
        return "long_prompts"

    @property
    def comparator(self) -> Comparator:
        return CANONICAL

    def examples(self, limit: int) -> Sequence[Example]:
        _check_limit(limit, self)
        return checked(range(limit), self._example)

    def _example(self, index: int) -> Example:
        made = long_prompts.long_text(self.split, self.num_tokens, index)
        return Example(f"long-{self.split}-{index}", (made.text,), made.code, shots=self.shots.pairs)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return marked(text, finished)[1]

    def dataset(self) -> Dataset:
        made = _generated(self, f"specexp.tasks.long_prompts split {self.split}, {self.num_tokens} tokens", 10)
        return self.shots.mark(made)


@dataclass(frozen=True, slots=True)
class Toy:
    """Short seeded digit strings for the toy pair; they have no gold answers."""

    shots: Shots = NO_SHOTS

    @property
    def name(self) -> str:
        return "toy"

    @property
    def comparator(self) -> Comparator:
        return CANONICAL

    def examples(self, limit: int) -> Sequence[Example]:
        _check_limit(limit, self)
        rng = random.Random("toy")
        digits = bytes(rng.randrange(10) for _ in range(8 * limit))

        def example(index: int) -> Example:
            text = " ".join(map(str, digits[8 * index : 8 * (index + 1)]))
            return Example(f"toy-{index}", (text,), shots=self.shots.pairs)

        return Examples(recent_examples(example), limit)

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


def _generated(task: Task, source: str, count: int = 100) -> Dataset:
    """Describe a generator; its hash is that of its first examples."""
    first = task.examples(count)
    text = "\n".join(f"{x.prompt_id} {x.turns} {x.answer}" for x in first)
    return Dataset(task.name, source, hashlib.sha256(text.encode()).hexdigest(), len(first))


TASKS: dict[str, Callable[[DataConfig, Shots, str], Task]] = {
    "arith": lambda data, shots, split: Arith(split, shots),
    "gsm8k": lambda data, shots, split: GSM8K(data, shots),
    "long_prompts": lambda data, shots, split: LongPrompts(long_prompts.DEFAULT_TOKENS, split, shots),
    "math": lambda data, shots, split: MathProblems(data, shots),
    "mmlu_pro": lambda data, shots, split: MMLUPro(data, shots),
    "mtbench": lambda data, shots, split: Questions("mtbench", data, questions.MT_BENCH, shots),
    "prompts": lambda data, shots, split: Prompts(data, shots=shots),
    "spec_bench": lambda data, shots, split: Questions("spec_bench", data, shots=shots),
    "speed_bench": lambda data, shots, split: Questions("speed_bench", data, shots=shots),
    "toy": lambda data, shots, split: Toy(shots),
    **PROGRAM_TASKS,
}
SHOTS_SEED = 1  # of arith's own solved examples, which come from the split train


def task(
    name: str, data: DataConfig | None = None, shots: int = 0, split: str = "test", rule: AnswerRule | None = None,
    shots_data: DataConfig | None = None,
    num_tokens: int = 0,
    execute: str = NO_EXECUTION,
) -> Task:  # fmt: skip
    """Return the task of this name. It reads `data` if it needs any; `split` applies to tasks that generate problems,
    `rule` to `prompts`, where answers may be read in several ways, and `num_tokens` to `long_prompts`. `shots` solved
    examples precede each prompt: the first rows of `shots_data`, or the task's own. Programs run only if `execute` is
    `sandbox`.

    Raises TaskError.
    """
    if name.startswith(HARNESS):
        return HarnessTask(name, data or DataConfig(""), shots)
    if name not in TASKS:
        raise TaskError(unknown("task", name, TASKS))
    data, solved = data or DataConfig(""), _shots(name, shots, shots_data)
    if name in PROGRAM_TASKS:
        return PROGRAM_TASKS[name](data, solved, split, Sandbox().tried() if execute == SANDBOX else None)
    if name == "prompts":
        return Prompts(data, rule, solved)
    if name == "long_prompts" and num_tokens:
        return LongPrompts(num_tokens, split, solved)
    return TASKS[name](data, solved, split)


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
    with_notes = Prompts | GSM8K | Questions | MMLUPro | MathProblems | Programs | ArithCode | HarnessTask
    return task.notes if isinstance(task, with_notes) else []


def stops_of(task: Task) -> tuple[str, ...]:
    """Return the strings that end the outputs of a task by itself; those that begin in the prompt do not."""
    return task.stop if isinstance(task, HarnessTask) else ()
