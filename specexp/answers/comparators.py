"""Says when two answers are equal. Where a mismatch changes the answer in this sense, it is important; where an
output's answer equals the gold answer, it is correct.

Answers are texts, as a task reads them (`Task.extract`). A task without a comparator of its own compares them as they
are: what they are read by gives one canonical text for each number (`numbers.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SameText:
    """Answers are equal if their texts are."""

    @property
    def name(self) -> str:
        return "canonical text"

    def equal(self, answer: str, other: str, example: object) -> bool:
        return answer == other


CANONICAL = SameText()
