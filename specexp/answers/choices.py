"""Reads a choice, a letter from A to J, as models answer questions of MMLU-Pro's form: exactly or not at all.

What counts is the last of `the answer is (C)`, `Answer: C` and `\\boxed{C}`; without any, the last line if it is a
choice alone. `A and B` is no choice, and neither is the article in `the answer is A good ...` or the pronoun in `the
answer is I think ...`. MMLU-Pro's own script would take the last single letter of the text besides; this does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from specexp.answers.comparators import last_line

# Markup and words that may precede the letter.
_OPEN = r"(?P<open>(?:[\s(\[{$*_]|\\[(\[]|\\(?:boxed|text|textbf|mathbf|mathrm)\{|(?:[Oo]ption|[Cc]hoice)\s)*)"
_LETTER = re.compile(rf"{_OPEN}(?P<letter>[A-J])(?![\w'’-])")
_LEAD = re.compile(r"[Aa]nswer(?:\s+is\b\s*:?|\s*\**\s*:)|\\boxed(?=\{)")
_MORE = re.compile(rf"[\s)\]}}*.$]*(?:,|/|&|\band\b|\bor\b)\s*{_OPEN}[A-J](?![\w'’-])")
# After a bare A or I: what shows that it is a letter and not a word.
_REASON = re.compile(r"\s*(?:[^\s\w]|$|\n)|\s+(?:because|since|as|for|so|due|which)\b|\s+[A-Z]")
_ALONE = re.compile(r"[\s)\]}*.$:]*\Z")
_BRACKETED = re.compile(r"[\s*_]*\(?[A-J]\)")


@dataclass(frozen=True, slots=True)
class ChoiceAnswer:
    """The letter of a choice."""

    name = "choice"
    what = "a letter from A to J"
    spans_lines = False

    def equal(self, answer: str, other: str, example: object) -> bool:
        return answer == other

    def read(self, text: str) -> str | None:
        return _letter(text, 0)[1]

    def last(self, text: str, finished: bool) -> str | None:
        for lead in reversed(list(_LEAD.finditer(text))):
            result, letter = _letter(text, lead.end())
            if result:
                whole = _LETTER.match(text, lead.end())
                assert whole is not None
                return letter if finished or whole.end() < len(text) else None
        if not finished:
            return None
        line = last_line(text)
        found = _LETTER.match(line)
        if found and (_ALONE.match(line, found.end()) or _BRACKETED.match(line) or line == text.strip()):
            return self.read(line)
        return None


def _letter(text: str, place: int) -> tuple[bool, str | None]:
    """Return whether a choice is at this place, and which; None: several."""
    found = _LETTER.match(text, place)
    if found is None:
        return False, None
    bare = not found["open"].strip() or found["open"].rstrip().endswith(("ption", "hoice"))
    if bare and found["letter"] in "AI" and not _REASON.match(text, found.end()):
        return False, None
    return True, None if _MORE.match(text, found.end()) else found["letter"]
