"""Task `arith_code`: functions of one to three whole numbers, generated from a seed, with tests of them.

A problem describes one expression in words; its solution is a function with a comment. As in `arith`, wording is free
(phrases, the comment, the order of what commutes) and does not change what the tests say, while operators and operands
do. This file makes problems and their tests; it runs nothing and uses no tokenizer and no model.

The splits are those of `arith`: the hash of a function's operators and operands decides, so that no function of a test
problem occurs in training, in any wording.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from specexp.errors import TaskError
from specexp.sandbox.job import CallTest
from specexp.sequences.names import first_of_each
from specexp.tasks.arith import SPLITS, split_of

NAMES = ("a", "b", "c")
LARGEST = 12  # operand
NUM_TESTS = 5
FUNCTION = "f"

OPENINGS = ("Write f({args}): take a", "Define f({args}). Start from a", "The function f({args}) begins with a")
STEPS = {
    "+": ("add {n}", "increase it by {n}", "plus {n}"),
    "-": ("subtract {n}", "take away {n}", "minus {n}"),
    "*": ("multiply by {n}", "scale it by {n}", "times {n}"),
    "//": ("divide by {n} and round down", "take the whole part of a division by {n}", "floor-divide by {n}"),
    "%": ("keep the remainder by {n}", "reduce it modulo {n}", "take the rest of a division by {n}"),
}
JOINTS = (", then {step}", ", next {step}", " and {step}")
ENDS = (".", ". Return the result.", " and return that.")
COMMENTS = ("{steps}", "first {steps}", "we {steps}", "start from a: {steps}")
SHORT = {
    "+": ("add {n}", "plus {n}"), "-": ("subtract {n}", "minus {n}"), "*": ("times {n}", "multiply by {n}"),
    "//": ("divide by {n}", "floor of a part of {n}"), "%": ("modulo {n}", "remainder by {n}"),
}  # fmt: skip
SHORT_JOINTS = (", then ", ", ", " and then ")


@dataclass(frozen=True, slots=True)
class CodeProblem:
    """One problem: `numbers` has the number of arguments, then operator and operand (a number or a name) of steps."""

    index: int
    numbers: tuple[int | str, ...]
    question: str
    solution: str
    calls: tuple[tuple[tuple[int, ...], int], ...]  # arguments and results

    @property
    def tests(self) -> tuple[CallTest, ...]:
        return tuple(CallTest(FUNCTION, arguments, result) for arguments, result in self.calls)


def prompt(problem: CodeProblem) -> str:
    """Return the problem as the model's prompt; its solution follows."""
    return problem.question + "\n"


def problems(split: str, seed: int = 0, start: int = 0) -> Iterator[CodeProblem]:
    """Yield the split's problems without end; problem `index` depends on (split, seed, index) alone."""
    if split not in SPLITS:
        raise TaskError(f"arith_code has no split '{split}'. Known: {', '.join(SPLITS)}.")
    for index in itertools.count(start):
        yield _problem(split, seed, index)


def distinct(split: str, count: int, seed: int = 0) -> list[CodeProblem]:
    """Return the first `count` problems of the stream, without those whose function occurred before."""
    return list(distinct_stream(split, count, seed))


def distinct_stream(split: str, count: int, seed: int = 0) -> Iterator[CodeProblem]:
    """Yield the same problems."""
    return first_of_each(problems(split, seed), lambda problem: problem.numbers, count)


def value_of(numbers: tuple[int | str, ...], arguments: tuple[int, ...]) -> int:
    """Return what the function with these operators and operands makes of these arguments."""
    values = dict(zip(NAMES, arguments, strict=False))
    result = values["a"]
    for operator, operand in zip(numbers[1::2], numbers[2::2], strict=True):
        n = values[operand] if isinstance(operand, str) else operand
        result = {
            "+": lambda x, n: x + n, "-": lambda x, n: x - n, "*": lambda x, n: x * n, "//": lambda x, n: x // n,
            "%": lambda x, n: x % n,
        }[str(operator)](result, n)  # fmt: skip
    return result


def _problem(split: str, seed: int, index: int) -> CodeProblem:
    rng = random.Random(f"arith_code {split} {seed} {index}")
    while True:
        numbers = _function(rng)
        if split_of(numbers) == split:
            break
    question, solution = _wording(rng, numbers)
    drawn = [tuple(rng.randint(-20, 20) for _ in range(int(numbers[0]))) for _ in range(NUM_TESTS)]
    return CodeProblem(index, numbers, question, solution, tuple((each, value_of(numbers, each)) for each in drawn))


def _function(rng: random.Random) -> tuple[int | str, ...]:
    num_arguments = rng.choice((1, 2, 2, 3))
    unused = list(NAMES[1:num_arguments])
    num_steps = max(len(unused), rng.choice((1, 2, 2, 3)))
    numbers: list[int | str] = [num_arguments]
    for step in range(num_steps):
        if unused and (num_steps - step == len(unused) or rng.random() < 0.5):
            numbers += [rng.choice("+-*"), unused.pop(0)]
        else:
            numbers += [rng.choice(("+", "-", "*", "//", "%")), rng.randint(2, LARGEST)]
    return tuple(numbers)


def _wording(rng: random.Random, numbers: tuple[int | str, ...]) -> tuple[str, str]:
    names = ", ".join(NAMES[: int(numbers[0])])
    steps = [(str(operator), operand) for operator, operand in zip(numbers[1::2], numbers[2::2], strict=True)]
    question = rng.choice(OPENINGS).format(args=names)
    short = []
    text, simple = "a", True  # the expression, and whether it has no operator yet
    for operator, operand in steps:
        question += rng.choice(JOINTS).format(step=rng.choice(STEPS[operator]).format(n=operand))
        short.append(rng.choice(SHORT[operator]).format(n=operand))
        inner = text if simple or operator in "+-" else f"({text})"
        turned = operator in "+*" and rng.random() < 0.3
        text = f"{operand} {operator} {inner}" if turned else f"{inner} {operator} {operand}"
        simple = False
    comment = rng.choice(COMMENTS).format(steps=rng.choice(SHORT_JOINTS).join(short))
    question += rng.choice(ENDS)
    return question, f"def {FUNCTION}({names}):\n    # {comment}\n    return {text}"
