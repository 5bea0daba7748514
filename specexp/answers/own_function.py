"""Compares answers by a person's own function, named `module:function` and called as `function(answer, gold)`.

It returns True or False, or a similarity, which must reach a threshold. The module is imported from the working folder
or from what is installed. In mining, `gold` is the answer before the swap.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp.errors import TaskError, first_line, shown

FORM = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class OwnFunction:
    """Answers are whole texts, or what an answer rule reads; they are equal if the function says so."""

    what = "a text"
    spans_lines = False

    function: Callable[[str, str], Any]
    path: str  # module:function
    min_similarity: float

    @classmethod
    def load(cls, path: str, min_similarity: float) -> OwnFunction:
        """Import `module:function`. Raises TaskError that names it."""
        module, _, name = path.partition(":")
        here = str(Path.cwd())
        sys.path.insert(0, here)
        try:
            result: Any = importlib.import_module(module)
        except Exception as error:  # a module is a program and can raise anything
            raise TaskError(
                f"comparator '{path}': module '{module}' cannot be imported ({type(error).__name__}:"
                f" {first_line(error)}). Run in its folder, or install it."
            ) from error
        finally:
            sys.path.remove(here)
        for part in name.split("."):
            result = getattr(result, part, None)
        if not callable(result):
            raise TaskError(f"comparator '{path}': module '{module}' has no function '{name}'.")
        return cls(result, path, min_similarity)

    @property
    def name(self) -> str:
        return self.path

    def equal(self, answer: str, other: str, example: object) -> bool:
        """Return what the function says. Raises TaskError if it fails, or says neither yes, no nor a number."""
        try:
            said = self.function(answer, other)
        except Exception as error:  # likewise
            words = f"comparator '{self.path}' failed ({type(error).__name__}: {first_line(error)})"
            raise TaskError(f"{words} for the answers {shown(answer)} and {shown(other)}.") from error
        if str(said) in ("True", "False"):  # a bool of numpy, too
            return bool(said)
        try:
            similarity = math.nan if isinstance(said, str) else float(said)
        except (TypeError, ValueError):
            similarity = math.nan
        if math.isnan(similarity):
            raise TaskError(
                f"comparator '{self.path}' returned {shown(said)} for the answers {shown(answer)} and {shown(other)};"
                " it must return True, False or a number."
            )
        return similarity >= self.min_similarity

    def read(self, text: str) -> str | None:
        return text.strip() or None

    def last(self, text: str, finished: bool) -> str | None:
        return self.read(text) if finished else None
