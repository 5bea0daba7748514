"""Reads a JSON value from a text and compares values: keys have no order, `1` is `1.0`, and `true` is not `1`.

A text that repeats a key, or has a number that no double holds, is no JSON value here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

LONGEST_TEXT = 20_000  # only so many characters at the end of a text are searched
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """A JSON value, as its canonical text: keys sorted, no spaces, whole numbers without a point."""

    name = "json"
    what = "a JSON value"
    spans_lines = True

    def equal(self, answer: str, other: str, example: object) -> bool:
        return answer == other

    def read(self, text: str) -> str | None:
        """Return the value that a whole text is, with or without a code fence around it."""
        fenced = _FENCE.fullmatch(text.strip())
        try:
            return canonical(_DECODER.decode((fenced[1] if fenced else text).strip()))
        except (ValueError, RecursionError):
            return None

    def last(self, text: str, finished: bool) -> str | None:
        """Return the value that the text is, if it is finished; else the last object or array in it."""
        if finished and (whole := self.read(text)) is not None:
            return whole
        text, place, result = text[-LONGEST_TEXT:], 0, None
        while start := _OPENING.search(text, place):
            try:
                value, place = _DECODER.raw_decode(text, start.start())
                result = canonical(value)
            except ValueError:
                place = start.end()
            except RecursionError:
                return None
        return result


def canonical(value: Any) -> str:
    """Return the one text of a value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _number(text: str) -> float | int:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is given twice")
    return result


_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=_constant, object_pairs_hook=_object)
