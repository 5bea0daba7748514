"""Finds the program in a generated text: in its fenced code block, else the text itself as far as it is Python."""

from __future__ import annotations

import ast
import re
import warnings

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
OPEN = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*)\Z", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "python3", "py")
MOST_LINES = 400  # of a text without a code block


def program_of(text: str, finished: bool, last: bool = False) -> str | None:
    """Return the program in a text, or None.

    Of several code blocks it is the first one (with `last`, the last one) that is marked as Python, or else the first
    or last one of any kind. A block without an end, and a text without a block, count only if the text ended by itself.
    """
    blocks = [(match[1].lower(), match[2]) for match in FENCE.finditer(text)]
    if not blocks and finished and (match := OPEN.search(text)):
        blocks = [(match[1].lower(), match[2])]
    if blocks:
        chosen = [code for kind, code in blocks if kind in PYTHON] or [code for _, code in blocks]
        return _kept(chosen[-1 if last else 0])
    return _kept(text) if finished else None


def completed(start: str, program: str, function: str) -> str:
    """Return a whole program: the prompt's `start`, and below it `program`, which continues it or defines `function`.

    It is cut after the last line with which it is Python: models go on with other text. `start` is Python by itself; it
    has the imports and functions that a program need not repeat.
    """
    if re.search(rf"^(async\s+)?def\s+{re.escape(function)}\b", program, re.MULTILINE):
        return as_python(f"{start.rstrip()}\n\n", program)
    return as_python(start, program if program[:1].isspace() else f"    {program}")


def as_python(start: str, text: str) -> str:
    """Return `start` and as many lines of `text` as make a Python program; all of them if no number does."""
    lines = text.splitlines(keepends=True)
    for count in range(min(len(lines), MOST_LINES), 0, -1):
        candidate = start + "".join(lines[:count])
        if is_python(candidate):
            return candidate
    return start + text


def is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _kept(code: str) -> str | None:
    """Return code without empty lines around it, or None if nothing is left."""
    code = code.strip("\n").rstrip()
    return code or None
