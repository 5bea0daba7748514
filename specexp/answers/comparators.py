"""Says when two answers are equal. Where a mismatch changes the answer in this sense, it is important; where an
output's answer equals the gold answer, it is correct.

Answers are texts, as a task reads them (`Task.extract`). A task without a comparator of its own compares them as they
are: what they are read by gives one canonical text for each number (`numbers.py`). Kinds of answers that one's own
prompts can have besides (`kinds.py`) also read them: each gives one text to answers that are equal, if it can.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from specexp.answers import numbers
from specexp.answers.mathematics import boxed


class AnswerKind(Protocol):
    """A kind of answer: how it is read from a text, and when two are equal.

    `what` completes "it must be". Where `spans_lines`, an answer after a marker may go on in the lines that follow.
    """

    @property
    def name(self) -> str: ...

    @property
    def what(self) -> str: ...

    @property
    def spans_lines(self) -> bool: ...

    def equal(self, answer: str, other: str, example: object) -> bool: ...

    def read(self, text: str) -> str | None:
        """Return the answer that a short text is: a gold answer, what follows a marker, a line, or a match."""
        ...

    def last(self, text: str, finished: bool) -> str | None:
        """Return the answer in a text that has no marker, or None."""
        ...


@dataclass(frozen=True, slots=True)
class SameText:
    """Answers are equal if their texts are."""

    name = "canonical text"

    def equal(self, answer: str, other: str, example: object) -> bool:
        return answer == other


CANONICAL = SameText()


@dataclass(frozen=True, slots=True)
class NumberAnswer:
    """One number, in its canonical text."""

    name = "number"
    what = "a number"
    spans_lines = False

    def equal(self, answer: str, other: str, example: object) -> bool:
        return answer == other

    def read(self, text: str) -> str | None:
        return numbers.whole(text) or numbers.last(text)

    def last(self, text: str, finished: bool) -> str | None:
        return numbers.last(text) if finished else None


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """A line of text, compared to the character; spaces around it are not part of it."""

    name = "text"
    what = "a text"
    spans_lines = False

    def equal(self, answer: str, other: str, example: object) -> bool:
        return answer == other

    def read(self, text: str) -> str | None:
        return text.strip() or None

    def last(self, text: str, finished: bool) -> str | None:
        return self.read(last_line(text)) if finished else None


_BRACKETS = ("{}", "[]", "()")
_BETWEEN = re.compile(r"[;\n]|,|\band\b|\bor\b")
_LEAD = re.compile(r".*(?:\bare\b|\bis\b|:\s)", re.DOTALL)
_NAME = re.compile(r"\s*[a-zA-Z]\w{0,3}\s*=")
# May be one number or two.
_UNCLEAR = re.compile(r"\d,\d{3}(?!\d)")


@dataclass(frozen=True, slots=True)
class NumbersAnswer:
    """A set of numbers, in any order: `{1, 2}`, `2 and 1`, `x = 1 or x = 2`. Its text has each once, sorted."""

    name = "numbers"
    what = "numbers such as 1, 2 and 1/3, with a space after each comma"
    spans_lines = False

    def equal(self, answer: str, other: str, example: object) -> bool:
        return answer == other

    def read(self, text: str) -> str | None:
        """Return the numbers that a whole text lists, after words such as `the solutions are`; None if it lists
        anything else, too."""
        bare = (boxed(text) or text).replace("\\{", "{").replace("\\}", "}").strip().rstrip(".").strip("$ ")
        bare = _LEAD.sub("", bare).strip("$ ")
        while bare[:1] + bare[-1:] in _BRACKETS:
            bare = bare[1:-1].strip()
        if _UNCLEAR.search(bare):
            return None
        found = [numbers.whole(_NAME.sub("", part)) for part in _BETWEEN.split(bare) if part.strip()]
        values = {Fraction(number) for number in found if number is not None}
        return ", ".join(map(numbers.canonical, sorted(values))) if found and None not in found else None

    def last(self, text: str, finished: bool) -> str | None:
        return self.read(boxed(text) or last_line(text)) if finished else None


def last_line(text: str) -> str:
    """Return the last line that is not empty; "" if there is none."""
    return (text.strip().splitlines() or [""])[-1]
