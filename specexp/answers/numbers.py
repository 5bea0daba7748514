r"""Reads a number from generated text, exactly or not at all.

The rule: no pattern ends inside a number. From the first digit on, everything that may be part of one number is taken
(digits, separators, signs, operators between numbers, exponents), and this run is either one number or none:
`9{,}500`, `9\,500`, `12 000`, `1/2` and `1e3` are numbers; `3-9500`, `5, 6`, `1,5`, `2:30`, `3 million` and
`5\sqrt{2}` are not. Of an equation, the number is what follows its last `=`. The conventions are those of English text:
a comma separates thousands and a point decimals; the European form is read only if it is unambiguous (`1.234,50`).
Currency signs and percent signs are units: `8%` is 8.

Numbers are compared by their one canonical text: a decimal without trailing zeros, or a fraction in lowest terms.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

LONGEST_RUN = 300  # characters; longer than any answer, and below Python's limit for integers
LARGEST_EXPONENT = 300

_MARK = "\x01"  # replaces markup: ignored at the edges of a number, and never part of one
_SPACES = "\t\xa0\u2000-\u200a\u202f\u205f\u3000"
_STYLES = "boxed|underline|fbox|text|textbf|textit|textrm|mathbf|mathrm|mathit|mathsf|mbox|emph|bf|rm"
# Each form of markup and its replacement. Order matters.
_CLEANING: tuple[tuple[str, str], ...] = (
    (r"\{,\}", ","),
    (r"\\!|[\u200b\u2060\ufeff\xad]", ""),
    (rf"\\[,;: ]|~|[{_SPACES}]", " "),
    (r"(?<=\d)[ ]?\\[dt]?frac[ ]?(?=\{|\d)", " \\\\frac"),  # a mixed number
    (r"\\[dt]?frac[ ]?\{[ ]?(\d{1,60})[ ]?\}[ ]?\{[ ]?(\d{1,60})[ ]?\}", r"\1/\2"),
    (r"\\[dt]?frac[ ]?(\d)[ ]?(\d)", r"\1/\2"),
    (rf"\\(?:{_STYLES})[ ]?\{{", _MARK),
    (r"(?:\^[ ]?)?\{?\\circ\}?", "°"),
    (r"\\times|\\cdot|[×⋅·∙]|(?<=\d)\*(?=[\d(])|(?<=[\d)%] )\*(?= )", "×"),
    (r"\\div", "÷"),
    (r"\\approx|[≈≃≅]|\bequals\b", "="),
    (r"[\u2212\u2010\u2011]", "-"),
    (r"\\[%#&]", "%"),
    (r"\bUS\$|\b(?:USD|EUR|GBP)\b|\\?[$€£¥₹₽¢]|\\[()\[\]]|[*`{}\"“”„]|(?<![^\W_])_|_(?![^\W_])", _MARK),
)
_RULES = [(re.compile(pattern), by) for pattern, by in _CLEANING]

_VULGAR = "¼½¾⅐-⅞"
_RAISED = "²³¹⁰-⁹₀-₉"
_ATOM = rf"(?:[\d{_VULGAR}{_RAISED}]+)"
_WORDS = "and|or|to|by|out of|plus|minus|times|over|divided by|multiplied by"
_UNITS = (
    "hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|dollars?|cents?|feet|foot|ft|inch(?:es)?|yards?"
    "|miles?|pounds?|lbs?|ounces?|oz|thousand|million|billion|trillion|hundred|dozens?"
)
# What may separate two numbers and join them to one run.
_LINK = (
    rf"(?:[{_MARK}%°)\] ]*+"
    rf"(?:[.’'](?=\d)|\.\("
    rf"|(?:[,;/÷×^+\-–—=&xX±]|(?<=\d)\()(?=[^a-zA-Z\n])[{_MARK} (=]*+|:(?! )|(?<= ):|[eE](?=[-+ ]?\d)"
    rf"|(?<=[ %)\]{_MARK}])(?:{_WORDS})(?= )|(?<=[ \d])(?:{_UNITS})(?: and|,)?(?= ))?+"
    rf"[{_MARK} ]*+[-+]?[{_MARK} ]*+(?=\.?[\d{_VULGAR}]))"
)
_RUN = re.compile(rf"(?:[-+](?:{_MARK} ?)*+)?+\.?(?=[\d{_VULGAR}]){_ATOM}(?:{_LINK}\.?{_ATOM})*+")
_OPENING = re.compile(rf"(?:[\s{_MARK}:_']|[a-zA-Z] ?=)*+")

# What must not directly precede or follow a number: with it, the number is part of something else.
_BEFORE = re.compile(
    rf"(?:[\w./^√±–—-]|[^\s:=(] +[-–—] +|\\[a-zA-Z]+{_MARK}+|\\(?:sqrt|sin|cos|tan|log|ln|exp|pm|mp)[{_MARK} ]*)\Z"
)
_BEFORE_SIGN = re.compile(rf"[\w)\]}}%./^√±–—-][{_MARK}]*\Z")
_AFTER = re.compile(
    rf"[{_MARK}%]*(?:"
    rf"[^\W\d_]*[\d_{_VULGAR}]"  # letters and digits in one word
    rf"|(?:[kKMBTxXπ√∞万億亿千百]|bn|mn|mil|mio|pi)(?![^\W\d_])"
    rf"|[ {_MARK})\]]*[×÷^√±]|[{_MARK} )\]]*[-+/] ?[{_MARK}]?\("
    rf"|[ {_MARK}]*\+ [a-zA-Z\\]"
    rf"|\(\.?\d"
    rf"|(?:\.|[ {_MARK}]*)\\(?!right|end|q?quad|tag|label|newline|[^a-zA-Z])"
    rf"|\.{_MARK}*\(\d"
    rf"|[ {_MARK}]*(?:squared|cubed|factorial|pi|hundred|thousand|million|billion|trillion)s?\b"
    rf"|[{_MARK} ]*and an? (?:half|quarter|third|fourth|fifth)|[{_MARK} ]*and (?:one|two|three)[ -]"
    rf")"
)
_ELLIPSIS = re.compile(r"\.\.|…")
# What shows that a number in an unfinished text is complete: the end of a line or sentence, or words after it.
_CLOSED = re.compile(r"[^\n]*\n|[^\w\s]*[.!?][^\w\s]*[ ]|(?:[^\w\n]*+\w++){3}[^\w\n]++\w")

_DECIMAL = re.compile(r"(?:\d+(?:\.\d+)?|\.\d+)")
_GROUPED = re.compile(r"[1-9]\d{0,2}([, '’])\d{3}(?:\1\d{3})*(?:\.\d+)?")
_EUROPEAN = re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}|[1-9]\d{0,2}(?:\.\d{3}){2,}|[1-9]\d{0,2}(?: \d{3})+,\d{1,2}")
_MIXED = re.compile(r"(?:(\d+) ?)??(?:(\d+) ?/ ?(\d+)|([¼½¾⅐-⅞]))")
_SCIENTIFIC = re.compile(r"(.+?)(?:[eE]|(?: ?× ?)10 ?\^[\x01 (]*)([-+]?\d+)")
_POWER = re.compile(r"10 ?\^[\x01 (]*([-+]?\d+)")


def whole(text: str) -> str | None:
    """Return the number if a whole text is one, with currency signs and markup around it; None for any other text.

    An equation is not a number.
    """
    clean = _cleaned(text)
    start = _OPENING.match(clean)
    assert start is not None
    run = _RUN.match(clean, start.end())
    if run is None or "=" in clean:
        return None
    value, end = _value(clean, run)
    return value if not clean[end:].strip(f"{_MARK}%'. \n\r\t") else None


def leading(text: str, finished: bool = True) -> tuple[bool, str | None]:
    """Return whether a text begins with a number, after markup alone, and which one (None: it is not one number).

    An unfinished text may end inside or before its number: if the text could still continue it, the result is True with
    None.
    """
    clean = _cleaned(text)
    start = _OPENING.match(clean)
    assert start is not None
    run = _RUN.match(clean, start.end())
    if run is None:
        return not (finished or _CLOSED.match(clean, start.end())), None
    value, end = _value(clean, run)
    return True, value if finished or _CLOSED.match(clean, end) else None


def last(text: str) -> str | None:
    """Return the last number of a finished text; None if there is none, or if the last run is not one number."""
    clean = _cleaned(text)
    run = None
    for run in _RUN.finditer(clean):  # noqa: B007 - the last one is meant
        pass
    return None if run is None else _value(clean, run)[0]


def is_number(text: str | None) -> bool:
    """True if a text is a number in its canonical form."""
    return text is not None and whole(text) == text


def canonical(value: Fraction) -> str:
    """Return the canonical text of a number: 1234.5, -7, 1/3."""
    rest, places = value.denominator, 0
    for factor in (2, 5):
        times = 0
        while rest % factor == 0:
            rest, times = rest // factor, times + 1
        places = max(places, times)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _cleaned(text: str) -> str:
    """Return a text without markup: spaces, digits, operators and words remain."""
    for pattern, by in _RULES:
        text = pattern.sub(by, text)
    return text


def _value(clean: str, run: re.Match[str]) -> tuple[str | None, int]:
    """Return the canonical number of a run, or None, and where the number ends."""
    result, end = run.group(), run.end()
    before = clean[max(0, run.start() - 40) : run.start()]
    _, equation, number = result.rpartition("=")
    inside = (_BEFORE_SIGN if result[0] in "-+" else _BEFORE).search(before) and not equation
    if inside or len(result) > LONGEST_RUN or _AFTER.match(clean, end):
        return None, end
    if "." in number and _ELLIPSIS.match(clean, end):
        return None, end
    value = _parsed(number)
    return None if value is None else canonical(value), end


def _parsed(run: str) -> Fraction | None:
    """Return the value of a run that is one number, including its sign, or None."""
    run = run.strip(f"{_MARK} ")
    sign = -1 if run.startswith("-") else 1
    bare = (run[1:] if run[:1] in ("-", "+") else run).strip(f"{_MARK} ")
    value = _plain(bare)
    if value is None and (match := _MIXED.fullmatch(bare)):
        value = _mixed(match)
    if value is None and (match := _POWER.fullmatch(bare) or _SCIENTIFIC.fullmatch(bare)):
        power = int(match.group(match.lastindex or 1))
        first = Fraction(1) if match.lastindex == 1 else _plain(match.group(1))
        if first is not None and abs(power) <= LARGEST_EXPONENT:
            value = first * Fraction(10) ** power
    return None if value is None else sign * value


def _plain(digits: str) -> Fraction | None:
    """Return a decimal number, with or without separated thousands, or None."""
    if _DECIMAL.fullmatch(digits):
        return Fraction(digits)
    if _GROUPED.fullmatch(digits):
        return Fraction(re.sub(r"[, '’]", "", digits))
    if _EUROPEAN.fullmatch(digits):
        return Fraction(re.sub(r"[. ]", "", digits).replace(",", "."))
    return None


def _mixed(match: re.Match[str]) -> Fraction | None:
    """Return the value of `1/2`, `1 1/2`, `½` or `1½`."""
    ones, above, below, sign = match.groups()
    if sign:
        part = Fraction(unicodedata.numeric(sign)).limit_denominator(10)
    elif int(below):
        part = Fraction(int(above), int(below))
    else:
        return None
    return int(ones or 0) + part
