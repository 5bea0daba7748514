r"""Tasks `mmlu_pro` and `math`: questions with options, and problems whose answer is a mathematical expression.

MMLU-Pro (Wang et al. 2406.01574) has rows of `question`, `options` (at most ten; early revisions fill up with "N/A",
which its own evaluation leaves out), `answer` (a letter from A to J), `answer_index` and `category`. An output's answer
is the letter it names (`answers/choices.py`).

MATH (Hendrycks et al. 2103.03874) has rows of `problem` and `solution`, whose answer is in `\boxed{...}`, or `answer`.
An output's answer is in its last `\boxed{...}`, and math-verify compares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specexp.answers.choices import ChoiceAnswer
from specexp.answers.kinds import math_answers
from specexp.answers.mathematics import boxed
from specexp.errors import TaskError, shown
from specexp.tasks import sampling
from specexp.tasks.conversations import NO_SHOTS, Shots
from specexp.tasks.example import Comparator, Dataset, Example, Examples, checked
from specexp.tasks.source import DataConfig, Row, Rows, name_of, read, text_of

LETTERS = "ABCDEFGHIJ"
CHOOSE = 'Think step by step. End with "The answer is (X)", where X is the letter of the right option.'
SOLVE = r"Solve the problem step by step. Put the final answer in \boxed{}."
OPTIONS_KEYS = ("question_id", "question", "options", "answer", "answer_index", "category")
ABOUT_OPTIONS = (
    "cot_content",
    "src",
)  # a solution, which only the split `validation` has, and where a question is from
NO_OPTION = "N/A"
MATH_KEYS = ("unique_id", "problem", "solution", "answer", "subject", "type")


class MMLUPro:
    """The questions of MMLU-Pro's form. The constructor reads and checks all rows."""

    name = "mmlu_pro"
    comparator: Comparator = ChoiceAnswer()

    def __init__(self, config: DataConfig, shots: Shots = NO_SHOTS) -> None:
        self._shots = shots
        self._rows: Rows = read(config)
        self._examples = shots.precede(_named(config, checked(self._rows.rows, _question)))
        self.notes = self._rows.unused(OPTIONS_KEYS + ABOUT_OPTIONS)

    def examples(self, limit: int) -> Sequence[Example]:
        return sampling.chosen(self._examples, limit)

    def selection(self, limit: int) -> str:
        return sampling.words(self._examples, limit)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return ChoiceAnswer().last(text, finished)

    def dataset(self) -> Dataset:
        return self._shots.mark(self._rows.dataset(self.name))


class MathProblems:
    """The problems of MATH's form. The constructor reads and checks all rows, and needs math-verify."""

    name = "math"

    def __init__(self, config: DataConfig, shots: Shots = NO_SHOTS) -> None:
        self.comparator: Comparator = math_answers("task math")
        self._shots = shots
        self._rows: Rows = read(config)
        self._examples = shots.precede(_named(config, checked(self._rows.rows, _problem)))
        self.notes = self._rows.unused(MATH_KEYS)

    def examples(self, limit: int) -> Sequence[Example]:
        return sampling.chosen(self._examples, limit)

    def selection(self, limit: int) -> str:
        return sampling.words(self._examples, limit)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return boxed(text) or None

    def dataset(self) -> Dataset:
        return self._shots.mark(self._rows.dataset(self.name))


def _question(row: Row) -> Example:
    options: Any = row.values.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise TaskError(f"{row.where}: 'options' must be a list of 2 to {len(LETTERS)} texts, got {shown(options)}.")
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise TaskError(f"{row.where}: 'options' must hold texts that are not empty.")
    answer, index = row.values.get("answer"), row.values.get("answer_index")
    while len(options) > 2 and options[-1] == NO_OPTION and answer != LETTERS[len(options) - 1]:
        options = options[:-1]
    letters = LETTERS[: len(options)]
    if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
        raise TaskError(f"{row.where}: 'answer' is {shown(answer)}; it must be one of {', '.join(letters)}.")
    if index is not None and index != letters.index(answer):
        raise TaskError(f"{row.where}: 'answer' is {answer}, but 'answer_index' is {shown(index)}, not its place.")
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    prompt = f"{text_of(row, 'question').strip()}\n\nOptions:\n{listed}\n\n{CHOOSE}\n"
    name = name_of(row, ("question_id",), str(row.number))
    return Example(f"mmlu_pro-{name}", (prompt,), answer, str(row.values.get("category") or ""))


def _problem(row: Row) -> Example:
    gold = row.values.get("answer")
    if gold is None:
        gold = boxed(text_of(row, "solution"))
        if not gold:
            raise TaskError(rf"{row.where}: 'solution' must hold its answer in \boxed{{...}}, or give it as 'answer'.")
    if not isinstance(gold, str) or not gold.strip():
        raise TaskError(f"{row.where}: 'answer' must be a text that is not empty, got {shown(gold)}.")
    category = str(row.values.get("subject") or row.values.get("type") or "")
    name = name_of(row, ("unique_id",), str(row.number))
    return Example(f"math-{name}", (f"{text_of(row, 'problem').strip()}\n{SOLVE}\n",), gold.strip(), category)


def _named(config: DataConfig, examples: Examples) -> Examples:
    if (twice := examples.twice) is not None:
        raise TaskError(f"data '{config}': {shown(twice)} is given twice; every row needs its own id.")
    return examples
