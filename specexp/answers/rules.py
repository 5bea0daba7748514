"""Reads the answer from a generated text: after a marker, as its last number or line, or by a pattern.

An answer is a text that can be compared with `==`: a number in its canonical form (`numbers.py`), or another text
stripped of what is not part of it. If the gold answer is a number, only numbers are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import regex

from specexp.answers import numbers

# Must be raised whenever some text would be read differently. Label sets and judges store the version they were made
# with, and results of two versions are never mixed. Version 1 stopped inside numbers (it read 9{,}500 as 9).
VERSION = 2
UNRECORDED = 0  # for results from before versions were recorded, made by version 1

RULES = ("auto", "marker", "last_number", "last_line", "pattern")
MARKER = re.compile(r"####|[Tt]he final answer is:?")
LONGEST_TEXT = 20_000  # only so many characters at the end of a text are matched against a pattern
SECONDS = 1.0  # time limit of a pattern for one text
# Texts on which a pattern with catastrophic backtracking is slow.
_TRIAL = 1_000  # characters
_TRIALS = [
    (each * _TRIAL)[:_TRIAL] + end for each in ("a", "1", " ", "a ", "1,", "x = 1\n") for end in ("", "!", "\n#")
]
_OWN = 20  # characters of the pattern itself from which more such texts are made


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """`rule` is one of RULES; `pattern` is the regular expression of the rule `pattern`.

    auto         what follows the last marker; without a marker, the last number if the gold answer is a number, else
                 the last line
    marker       what follows the last `####` or `The final answer is` on its line
    last_number  the last number of the text
    last_line    the last line that is not empty; if the gold answer is a number, the last number in it
    pattern      the last match: its group, or the whole match if the pattern has no group
    """

    rule: str = "auto"
    pattern: str = ""

    def read(self, text: str, finished: bool, gold: str | None) -> str | None:
        """Return the answer in a generated text, or None. `gold` is in the form that `normal` returns.

        An unfinished text has no last line or number yet, and text at its very end may be incomplete.
        """
        if self.rule == "pattern":
            return _by_pattern(self.pattern, text, finished, gold)
        if self.rule in ("auto", "marker"):
            result, answer = _by_marker(text, finished, gold)
            if result or self.rule == "marker" or gold is None:
                return answer
        if not finished:
            return None
        if self.rule == "last_number" or (self.rule == "auto" and numbers.is_number(gold)):
            return numbers.last(text)
        lines = text.strip().splitlines()
        return _in(lines[-1], gold) if lines else None


def version_note(what: str, version: object) -> str | None:
    """Return a note if `what` was mined with another version of this module, else None."""
    if version == VERSION:
        return None
    return (
        f"{what} was mined with {version_words(version)} of the answer rule, and this is version {VERSION}: some"
        " texts have another answer now. It can be used as it is; for labels of today's answers, mine and train again."
    )


def version_words(version: object) -> str:
    """Return `version 2`, or words for an unrecorded version."""
    return f"version {version}" if version else "version 1 (none is recorded)"


def marked(text: str, finished: bool, marker: re.Pattern[str] = MARKER) -> tuple[bool, str | None]:
    """Return whether a number follows a marker, and the number after the last such marker (None: not one number)."""
    end = len(text)
    for match in reversed(list(marker.finditer(text))):
        result, answer = numbers.leading(text[match.end() : end], finished or end < len(text))
        if result:
            return True, answer
        end = match.start()
    return False, None


def normal(answer: str) -> str:
    """Return an answer in canonical form: numbers normalised, without a final period or a currency sign."""
    number = numbers.whole(answer)
    if number is not None:
        return number
    bare = answer.strip().rstrip(".").strip().removeprefix("$")
    return re.sub(r"(?<=\d),(?=\d{3})", "", bare)


def check_pattern(pattern: str) -> None:
    """Raise ValueError, with the rule it breaks, for a pattern that cannot be used."""
    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it must be a regular expression: {error}.") from None
    if compiled.groups > 1:
        raise ValueError(
            f"it has {compiled.groups} groups; one at most is the answer: write (?:...) for those that only group."
        )
    own = sorted({c for c in pattern if c.isalnum()})[:_OWN]
    for trial in [*_TRIALS, *(c * _TRIAL + "!" for c in own)]:
        try:
            compiled.search(trial, timeout=SECONDS / 2)
        except TimeoutError:
            raise ValueError(
                f"it takes more than {SECONDS / 2:g} seconds on a text of {len(trial)} characters such as"
                f" {trial[:6]!r}...; write it without repetitions inside repetitions."
            ) from None


def _by_marker(text: str, finished: bool, gold: str | None) -> tuple[bool, str | None]:
    """Return whether there is a marker, and what follows the last one on its line, which must be complete."""
    matches = list(MARKER.finditer(text))
    if not matches:
        return False, None
    if numbers.is_number(gold):
        result, answer = marked(text, finished)
        if result:
            return True, answer
    line, ended, _ = text[matches[-1].end() :].partition("\n")
    return True, _in(line, gold) if finished or ended else None


def _by_pattern(pattern: str, text: str, finished: bool, gold: str | None) -> str | None:
    text = text[-LONGEST_TEXT:]
    last = None
    try:
        for last in regex.finditer(pattern, text, timeout=SECONDS):  # noqa: B007 - the last one is meant
            pass
    except TimeoutError:
        return None
    if last is None or (not finished and last.end() == len(text)):
        return None
    result = last.group(last.re.groups)
    return None if result is None else _in(result, gold)


def _in(text: str, gold: str | None) -> str | None:
    """Return a short text as an answer, or the number in it if the gold answer is a number."""
    if not numbers.is_number(gold):
        return normal(text) or None
    return numbers.whole(text) or numbers.last(text)
