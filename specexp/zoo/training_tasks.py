"""The tasks that a pair can be trained on: each makes problems from a seed and says whether a text solves one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from specexp.sandbox.sandbox import Sandbox
from specexp.tasks import arith, arith_code


class Trainable(Protocol):
    """A problem: a prompt is made of it, and its solution follows the prompt."""

    @property
    def solution(self) -> str: ...


class TrainingTask(Protocol):
    """A source of problems, the same for the same (split, seed, index)."""

    @property
    def name(self) -> str: ...

    def problems(self, split: str, seed: int = 0, start: int = 0) -> Iterator[Any]:
        """Yield the split's problems without end, from `start` on."""
        ...

    def distinct(self, split: str, count: int) -> Sequence[Any]:
        """Return the first `count` problems that differ in more than wording."""
        ...

    def prompt(self, problem: Any) -> str: ...

    def solves(self, problem: Any, text: str, finished: bool) -> bool:
        """True if a generated text solves the problem; `finished` is True if it ended by itself."""
        ...


@dataclass(frozen=True, slots=True)
class WordProblems:
    """Task `arith`."""

    name: str = "arith"

    def problems(self, split: str, seed: int = 0, start: int = 0) -> Iterator[arith.Problem]:
        return arith.problems(split, seed, start)

    def distinct(self, split: str, count: int) -> Sequence[arith.Problem]:
        return arith.distinct(split, count)

    def prompt(self, problem: arith.Problem) -> str:
        return arith.prompt(problem)

    def solves(self, problem: arith.Problem, text: str, finished: bool) -> bool:
        return arith.extract_answer(text, finished) == str(problem.answer)


@dataclass(frozen=True, slots=True)
class SmallFunctions:
    """Task `arith_code`. Without a sandbox it makes problems, but cannot say what solves them."""

    sandbox: Sandbox | None = None
    name: str = "arith_code"

    def problems(self, split: str, seed: int = 0, start: int = 0) -> Iterator[arith_code.CodeProblem]:
        return arith_code.problems(split, seed, start)

    def distinct(self, split: str, count: int) -> Sequence[arith_code.CodeProblem]:
        return arith_code.distinct(split, count)

    def prompt(self, problem: arith_code.CodeProblem) -> str:
        return arith_code.prompt(problem)

    def solves(self, problem: arith_code.CodeProblem, text: str, finished: bool) -> bool:
        assert self.sandbox is not None, "programs run in a sandbox alone"
        return finished and all(outcome.passed for outcome in self.sandbox.run(text, problem.tests))


TASKS: dict[str, TrainingTask] = {"arith": WordProblems(), "arith_code": SmallFunctions()}
