r"""Answers in mathematical notation: read from `\boxed{...}`, and compared by value with the package math-verify.

It calls `1/2`, `0.5` and `\frac{1}{2}` equal, and `x^2 + 2x` and `x(x + 2)`. It is not symmetric: an answer is compared
with the gold answer, or with the answer before a swap.
"""

from __future__ import annotations

import importlib
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SECONDS = 5  # the time limit for one expression; beyond it, answers whose texts differ are not equal
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MATHS = re.compile(r"\$|\\\(|\\\[")


def boxed(text: str) -> str | None:
    r"""Return what is in the last `\boxed{...}` that is closed; None if there is none."""
    for start in reversed(list(_BOX.finditer(text))):
        depth, place = 1, start.end()
        while place < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            place += 1
        if not depth:
            return text[start.end() : place - 1].strip()
    return None


@dataclass(frozen=True, slots=True)
class MathAnswer:
    """An expression; needs the package math-verify."""

    name = "math"
    what = "an expression"
    spans_lines = False

    def __post_init__(self) -> None:
        """Raise ImportError where the package is missing."""
        _library()

    def equal(self, answer: str, other: str, example: object) -> bool:
        """Return whether an answer has the value of the other one; expressions that cannot be parsed have none."""
        if answer == other:
            return True
        # The package's time limits are signals, which only the main thread gets.
        limit = SECONDS if threading.current_thread() is threading.main_thread() else None
        gold, said = _parsed(other, limit), _parsed(answer, limit)
        return bool(gold and said and _library().verify(gold, said, timeout_seconds=limit))

    def read(self, text: str) -> str | None:
        return (boxed(text) or text.strip().rstrip(".").strip()) or None

    def last(self, text: str, finished: bool) -> str | None:
        r"""Return the last `\boxed{...}`, which an unfinished text may have; else the last line."""
        result = boxed(text)
        if result is not None or not finished:
            return result or None
        return self.read((text.strip().splitlines() or [""])[-1])


@lru_cache(maxsize=4096)
def _parsed(text: str, limit: int | None) -> list[Any]:
    """Return what the package finds in an answer: the expression, and its text."""
    return list(_library().parse(text if _MATHS.search(text) else f"${text}$", parsing_timeout=limit))


def _library() -> Any:
    return importlib.import_module("math_verify")  # imports sympy, so only if needed
