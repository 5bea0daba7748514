"""Task `arith`: word problems generated from a seed, with a chain of thought and one checkable number.

The wording of a solution is free (several phrases for each statement, drawn uniformly); its numbers are exact. Two
models trained on it disagree often on words, which does not matter, and sometimes on digits, which does: the case that
AutoJudge is for. This file makes and reads problems; it uses no tokenizer and no model.

The splits are disjoint by construction: the hash of a problem's numbers decides its split, so the arithmetic of a test
problem never occurs in training, with any names or wording.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from specexp.answers.rules import marked
from specexp.errors import TaskError
from specexp.sequences.names import first_of_each

Split = Literal["train", "mining", "calibration", "test"]
# Of 8 hash buckets: the share of all possible problems that belongs to each split.
SPLITS: dict[str, tuple[int, ...]] = {"test": (0,), "calibration": (1,), "mining": (2, 3), "train": (4, 5, 6, 7)}
MAX_VALUE = 250
MARKER = re.compile(r"####")

NAMES = {
    "she": ("Mia", "Ann", "Zoe", "Lily", "Nora", "Ruth", "Eva", "Ida", "Jane", "Rosa"),
    "he": ("Tom", "Ben", "Max", "Leo", "Sam", "Paul", "Finn", "Otto", "Hugo", "Dan"),
}
OBJECTS = (
    "apples", "books", "coins", "stamps", "shells", "cards", "pears", "marbles", "stickers", "pencils",
    "buttons", "stones", "plums", "beads", "tickets", "balloons",
)  # fmt: skip

OPENINGS = ("{N} has {a} {obj}.", "{N} starts the day with {a} {obj}.", "In the morning {N} counts {a} {obj}.")
EVENTS = {
    "+": ("{O} gives {N} {n} more.", "Then {p} buys {n} {obj}.", "{N} finds {n} more."),
    "-": ("{N} gives {n} to {O}.", "Then {p} loses {n}.", "{N} sells {n} of them."),
    "*": ("{N} swaps each one for {n} new ones.", "Now {p} gets {n} times as many.", "Each one turns into {n}."),
    "/": ("{N} keeps only one of {n} equal parts.", "Then {p} shares them evenly with {n} in the group."),
}
QUESTIONS = ("How many {obj} does {N} have now?", "How many {obj} are left for {N}?", "How many is that in the end?")

SOLUTION_OPENINGS = ("{N} begins with {a}", "At first there are {a}", "We start from {a}")
SOLUTION_STEPS = {
    "+": ("Adding {n} gives", "After {n} more {p} has", "With the next {n} it is"),
    "-": ("Taking away {n} leaves", "After {n} go {p} has", "Without those {n} it is"),
    "*": ("Making {n} of each gives", "Since each becomes {n} {p} has", "Multiplied by {n} it is"),
    "/": ("One of {n} parts is", "Split by {n} {p} has", "Divided by {n} it is"),
}
SOLUTION_TAILS = (".", " {obj}.", " now.")
SOLUTION_ENDS = ("So the answer is {r}.", "In the end {N} has {r} {obj}.", "That makes {r} {obj} in total.")


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem: `numbers` is its arithmetic (start, then operator and operand of every step)."""

    index: int
    numbers: tuple[int | str, ...]
    question: str
    solution: str
    answer: int


def prompt(problem: Problem) -> str:
    """Return the problem as the model's prompt; its solution follows."""
    return problem.question + "\n"


def split_of(numbers: tuple[int | str, ...]) -> str:
    """Return the split that a problem with these numbers belongs to."""
    bucket = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[0] % 8
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def problems(split: Split | str, seed: int = 0, start: int = 0) -> Iterator[Problem]:
    """Yield the split's problems without end; problem `index` depends on (split, seed, index) alone."""
    if split not in SPLITS:
        raise TaskError(f"arith has no split '{split}'. Known: {', '.join(SPLITS)}.")
    index = start
    while True:
        yield _problem(split, seed, index)
        index += 1


def distinct(split: Split | str, count: int, seed: int = 0) -> list[Problem]:
    """Return the first `count` problems of the stream, without those whose numbers occurred before."""
    return list(distinct_stream(split, count, seed))


def distinct_stream(split: Split | str, count: int, seed: int = 0) -> Iterator[Problem]:
    """Yield the same problems."""
    return first_of_each(problems(split, seed), lambda problem: problem.numbers, count)


def extract_answer(text: str, finished: bool = True) -> str | None:
    """Return the number after the last `####` of a generated text, or None.

    An unfinished text may end inside its number; such a number is not read.
    """
    return marked(text, finished, MARKER)[1]


def _problem(split: str, seed: int, index: int) -> Problem:
    rng = random.Random(f"arith {split} {seed} {index}")
    while True:
        numbers, values = _arithmetic(rng)
        if split_of(numbers) == split:
            break
    question, solution = _wording(rng, numbers, values)
    return Problem(index, numbers, question, solution, values[-1])


def _arithmetic(rng: random.Random) -> tuple[tuple[int | str, ...], list[int]]:
    value = rng.randint(5, 60)
    numbers: list[int | str] = [value]
    values = [value]
    for _ in range(rng.choice((2, 3, 3, 4))):
        options = ["+"]
        if value > 4:
            options.append("-")
        if value * 2 <= MAX_VALUE:
            options.append("*")
        divisors = [k for k in range(2, 7) if value % k == 0 and value // k > 1]
        if divisors:
            options.append("/")
        operator = rng.choice(options)
        if operator == "+":
            operand = rng.randint(2, 50)
        elif operator == "-":
            operand = rng.randint(2, min(50, value - 2))
        elif operator == "*":
            operand = rng.randint(2, min(5, MAX_VALUE // value))
        else:
            operand = rng.choice(divisors)
        value = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[operator]
        if value > MAX_VALUE:
            break
        numbers += [operator, operand]
        values.append(value)
    return tuple(numbers), values


def _wording(rng: random.Random, numbers: tuple[int | str, ...], values: list[int]) -> tuple[str, str]:
    pronoun = rng.choice(("she", "he"))
    name = rng.choice(NAMES[pronoun])
    other = rng.choice([n for names in NAMES.values() for n in names if n != name])
    words = {"N": name, "O": other, "p": pronoun, "obj": rng.choice(OBJECTS), "a": numbers[0], "r": values[-1]}

    def say(phrases: tuple[str, ...], **more: object) -> str:
        return rng.choice(phrases).format(**words, **more)

    question = [say(OPENINGS)]
    solution = [say(SOLUTION_OPENINGS) + say(SOLUTION_TAILS)]
    for i, (before, after) in enumerate(itertools.pairwise(values)):
        operator, operand = str(numbers[1 + 2 * i]), numbers[2 + 2 * i]
        question.append(say(EVENTS[operator], n=operand))
        equation = f" {before}{operator}{operand}={after}"
        solution.append(say(SOLUTION_STEPS[operator], n=operand) + equation + say(SOLUTION_TAILS))
    question.append(say(QUESTIONS))
    solution.append(say(SOLUTION_ENDS) + f"\n#### {values[-1]}")
    return " ".join(question), " ".join(solution)
