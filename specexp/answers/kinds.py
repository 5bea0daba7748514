"""The kinds of answers of one's own prompts, by the name that the setting `comparator` has."""

from __future__ import annotations

from specexp.answers.choices import ChoiceAnswer
from specexp.answers.comparators import AnswerKind, NumberAnswer, NumbersAnswer, TextAnswer
from specexp.answers.json_values import JsonAnswer
from specexp.answers.mathematics import MathAnswer
from specexp.answers.own_function import FORM, OwnFunction
from specexp.errors import TaskError, unknown

AUTO = "auto"
NAMES = (AUTO, "number", "text", "choice", "numbers", "json", "math")
MIN_SIMILARITY = 0.5


def check_comparator(name: str) -> None:
    """Raise ValueError for what names no comparator. A function is not looked for yet."""
    if name not in NAMES and not FORM.fullmatch(name):
        raise ValueError(unknown("comparator", name, (*NAMES, "module:function")))


def kind_of(name: str, min_similarity: float = MIN_SIMILARITY) -> AnswerKind | None:
    """Return a kind of answer by its name; None for `auto`, where the gold answer decides between number and text.

    Raises TaskError if the package or function that it needs cannot be imported.
    """
    if name == AUTO:
        return None
    if name == "math":
        return math_answers("comparator math")
    if ":" in name:
        return OwnFunction.load(name, min_similarity)
    kinds: tuple[AnswerKind, ...] = (NumberAnswer(), TextAnswer(), ChoiceAnswer(), NumbersAnswer(), JsonAnswer())
    return next(kind for kind in kinds if kind.name == name)


def math_answers(what: str) -> MathAnswer:
    """Return the comparator of mathematical expressions. Raises TaskError if its package is missing."""
    try:
        return MathAnswer()
    except ImportError:
        raise TaskError(
            f"{what} needs the package 'math-verify', which is not installed: pip install 'specexp[math]'."
        ) from None
