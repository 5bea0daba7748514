"""Tasks whose answers are programs: `humaneval`, `mbpp`, `livecodebench` and `arith_code`.

Two programs are equal if they pass the same tests, and correct if they pass all. Tests run in a sandbox, and only if
the user asked for one; until then, a task has prompts alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specexp.errors import TaskError, shown
from specexp.programs import humaneval, livecodebench
from specexp.programs.extraction import as_python, completed, is_python, program_of
from specexp.sandbox.job import CodeTest, ProgramTest
from specexp.sandbox.sandbox import Sandbox
from specexp.sequences.lazy import LazySequence, RecentItems
from specexp.sequences.names import NameNumbers, first_twice
from specexp.tasks import arith_code
from specexp.tasks.conversations import NO_SHOTS, Shots
from specexp.tasks.defaults import NO_EXECUTION, execution_fault
from specexp.tasks.example import MOST_KEPT, Dataset, Example, Examples, generated
from specexp.tasks.source import DataConfig, Row, Rows, name_of, read, text_of

GOLD = "all tests pass"  # the gold answer to every problem
MOST_GENERATED = 100_000
HUMANEVAL_KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
MBPP_KEYS = ("task_id", "text", "prompt", "code", "test_list", "test_setup_code", "test_imports", "challenge_test_list")
LIVECODEBENCH_KEYS = (
    "question_title", "question_content", "platform", "question_id", "contest_id", "contest_date", "starter_code",
    "difficulty", "public_test_cases", "private_test_cases", "metadata",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProgramProblem:
    """One problem. A program that lacks `function` continues `start`; `prelude` precedes every program."""

    prompt_id: str
    prompt: str
    tests: tuple[ProgramTest, ...]
    start: str = ""
    function: str = ""
    prelude: str = ""
    category: str = ""

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        texts = sum(len(repr(test)) + 200 for test in self.tests)
        return 400 + len(self.prompt) + len(self.start) + len(self.prelude) + texts

    def program(self, answer: str) -> str:
        """Return the whole program that an answer stands for."""
        if self.function:
            return self.prelude + completed(self.start, answer, self.function)
        return self.prelude + as_python("", answer)


@dataclass(frozen=True, slots=True)
class ProgramTests:
    """Compares programs by the tests that they pass. Each text of a program runs once in a run."""

    task: str
    problem: Callable[[str], ProgramProblem]  # by prompt id
    sandbox: Sandbox | None
    _passed: dict[tuple[str, str], tuple[bool, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "program tests"

    def equal(self, answer: str, other: str, example: Example) -> bool:
        return answer == other or self.passed(answer, example) == self.passed(other, example)

    def passed(self, answer: str, example: Example) -> tuple[bool, ...]:
        """Return which tests an answer passes. Raises TaskError if programs may not run."""
        problem = self.problem(example.prompt_id)
        if answer == GOLD:
            return (True,) * len(problem.tests)
        if self.sandbox is None:
            raise TaskError(str(execution_fault(self.task, NO_EXECUTION, True)))
        key = (problem.prompt_id, answer)
        if key not in self._passed:
            outcomes = self.sandbox.run(problem.program(answer), problem.tests)
            self._passed[key] = tuple(outcome.passed for outcome in outcomes)
        return self._passed[key]


class Programs:
    """The problems of a file, read and checked. `last` says that of several code blocks the last one is the answer."""

    def __init__(
        self, name: str, rows: Rows, problem: Callable[[Row], ProgramProblem], unused: Sequence[str],
        sandbox: Sandbox | None, shots: Shots = NO_SHOTS, last: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self.sandbox = sandbox
        self._shots = shots
        recent = RecentItems(lambda place: problem(rows.rows[place]), lambda each: each.size, MOST_KEPT)
        for place, row in enumerate(rows.rows):
            recent.put(place, problem(row))
        problems = LazySequence(recent, len(rows.rows))
        self._rows, self._problems, self._unused, self._last = rows, problems, unused, last
        numbers = NameNumbers()
        if twice := first_twice((problem.prompt_id for problem in problems), numbers):
            raise TaskError(f"{rows.config}: problem {shown(twice)} is given twice; every problem needs its own id.")

        def by_id(prompt_id: str) -> ProgramProblem:
            if (place := numbers.find(prompt_id)) is None:
                raise KeyError(prompt_id)
            return problems[place]

        self.comparator = ProgramTests(name, by_id, sandbox)

    @property
    def notes(self) -> list[str]:
        """Notes on the rows, and on what confines the programs."""
        return [*self._unused, *([self.sandbox.protection.note()] if self.sandbox else [])]

    def examples(self, limit: int) -> Sequence[Example]:
        return self._shots.precede(Examples(self._example, len(self._problems)))[:limit]

    def _example(self, place: int) -> Example:
        problem = self._problems[place]
        return Example(problem.prompt_id, (problem.prompt,), GOLD, problem.category)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return program_of(text, finished, self._last)

    def dataset(self) -> Dataset:
        return self._shots.mark(self._rows.dataset(self.name))


@dataclass(frozen=True, slots=True)
class ArithCode:
    """Seeded small functions (`arith_code.py`); no model or judge is trained on the split `test`."""

    split: str
    sandbox: Sandbox | None
    comparator: ProgramTests
    shots: Shots = NO_SHOTS

    @property
    def name(self) -> str:
        return "arith_code"

    @property
    def notes(self) -> list[str]:
        return [self.sandbox.protection.note()] if self.sandbox else []

    def examples(self, limit: int) -> Sequence[Example]:
        if limit > MOST_GENERATED:
            raise TaskError(
                f"{limit} prompts of task 'arith_code' are asked for; it makes at most {MOST_GENERATED:,}: lower limit"
                " or skip."
            )
        return generated(arith_code.distinct_stream(self.split, limit), self._made, self._example)

    def _made(self, index: int) -> arith_code.CodeProblem:
        return next(arith_code.problems(self.split, start=index))

    def _example(self, problem: arith_code.CodeProblem) -> Example:
        name = f"arith_code-{self.split}-{problem.index}"
        return Example(name, (arith_code.prompt(problem),), GOLD, shots=self.shots.pairs)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return program_of(text, finished)

    def dataset(self) -> Dataset:
        problems = arith_code.distinct(self.split, 100)
        text = "\n".join(f"{each.question} {each.calls}" for each in problems)
        source = f"specexp.tasks.arith_code split {self.split}"
        made = Dataset(self.name, source, hashlib.sha256(text.encode()).hexdigest(), len(problems))
        return self.shots.mark(made)


def _humaneval(
    data: DataConfig, shots: Shots = NO_SHOTS, split: str = "test", sandbox: Sandbox | None = None
) -> Programs:
    rows = read(data)
    return Programs("humaneval", rows, _humaneval_problem, rows.unused(HUMANEVAL_KEYS), sandbox, shots)


def _humaneval_problem(row: Row) -> ProgramProblem:
    prompt, function = text_of(row, "prompt"), text_of(row, "entry_point")
    if not is_python(prompt):
        raise TaskError(f"{row.where}: 'prompt' must be a Python function without a body but its description.")
    try:
        tests = humaneval.tests_of(text_of(row, "test"), function)
    except (SyntaxError, ValueError) as error:
        raise TaskError(f"{row.where}: 'test' has no tests that can be run: {error}.") from None
    text = (
        "Complete this Python function. Answer with nothing but the whole function, in one code block.\n"
        f"```python\n{prompt.strip()}\n```\n"
    )
    name = name_of(row, ("task_id",), f"line-{row.number}").replace("/", "-")
    return ProgramProblem(name, text, tuple(tests), prompt, function)


def _mbpp(data: DataConfig, shots: Shots = NO_SHOTS, split: str = "test", sandbox: Sandbox | None = None) -> Programs:
    rows = read(data)
    return Programs("mbpp", rows, _mbpp_problem, rows.unused(MBPP_KEYS), sandbox, shots)


def _mbpp_problem(row: Row) -> ProgramProblem:
    key = "text" if row.values.get("text") is not None else "prompt"  # that of the sanitized form
    asserts = _texts(row, "test_list")
    if not asserts:
        raise TaskError(f"{row.where}: 'test_list' must have at least one test.")
    setup = row.values.get("test_setup_code") or "\n".join(_texts(row, "test_imports"))
    if not isinstance(setup, str):
        raise TaskError(f"{row.where}: 'test_setup_code' must be a text, got {shown(setup)}.")
    listed = "\n".join(asserts)
    text = (
        f"{text_of(row, key).strip()}\n"
        "Answer with nothing but a Python function, in one code block. It must pass these tests:\n"
        f"```python\n{listed}\n```\n"
    )
    tests = tuple(CodeTest(f"{setup}\n{each}\n") for each in asserts)
    return ProgramProblem(f"mbpp-{name_of(row, ('task_id',), f'line-{row.number}')}", text, tests)


def _texts(row: Row, key: str) -> list[str]:
    value = row.values.get(key)
    value = [] if value is None else list(value) if isinstance(value, list | tuple) else value
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise TaskError(f"{row.where}: '{key}' must be a list of texts, got {shown(value)}.")
    return value


def _livecodebench(
    data: DataConfig, shots: Shots = NO_SHOTS, split: str = "test", sandbox: Sandbox | None = None
) -> Programs:
    rows = read(data)
    return Programs(
        "livecodebench", rows, _livecodebench_problem, rows.unused(LIVECODEBENCH_KEYS), sandbox, shots, last=True
    )


def _livecodebench_problem(row: Row) -> ProgramProblem:
    try:
        tests = livecodebench.tests_of(row.values)
    except ValueError as error:
        raise TaskError(f"{row.where}: {error}.") from None
    starter = row.values.get("starter_code") or ""
    task = (
        f"Complete this code. Answer with the whole of it in one code block.\n```python\n{str(starter).strip()}\n```\n"
        if starter
        else "Answer with a Python program in one code block. It reads the input from stdin and prints the output.\n"
    )
    name = name_of(row, ("question_id",), f"line-{row.number}")
    return ProgramProblem(
        f"livecodebench-{name}", f"{text_of(row, 'question_content').strip()}\n\n{task}", tests,
        prelude=livecodebench.PRELUDE, category=str(row.values.get("difficulty") or ""),
    )  # fmt: skip


def _arith_code(
    data: DataConfig, shots: Shots = NO_SHOTS, split: str = "test", sandbox: Sandbox | None = None
) -> ArithCode:
    def problem(prompt_id: str) -> ProgramProblem:
        index = int(prompt_id.rpartition("-")[2])
        found = next(arith_code.problems(split, start=index))
        return ProgramProblem(prompt_id, arith_code.prompt(found), found.tests)

    return ArithCode(split, sandbox, ProgramTests("arith_code", problem, sandbox), shots)


PROGRAM_TASKS: Mapping[str, Callable[..., Programs | ArithCode]] = {
    "arith_code": _arith_code, "humaneval": _humaneval, "livecodebench": _livecodebench, "mbpp": _mbpp,
}  # fmt: skip


def execution_of(task: Any) -> dict[str, str]:
    """Return what confines a task's programs, as tags and parameters of a run; nothing if none run."""
    if not isinstance(task, Programs | ArithCode) or task.sandbox is None:
        return {}
    protection = task.sandbox.protection
    result = {"sandbox": protection.name, "sandbox.processes": protection.processes}
    return result | ({"sandbox.unprotected": "; ".join(protection.unprotected)} if protection.unprotected else {})
