"""Formats numbers for readers, and builds sentences that keep the metric of each of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specexp.evaluation.report.comparison import Entry


@dataclass(frozen=True, slots=True)
class Number:
    """A metric's value of one run, or of two (`a|b`), with its text."""

    metric: str
    run: str
    value: float
    text: str


Sentence = Sequence[str | Number]
Form = Callable[[float], str]


def plain(sentence: Sentence) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in sentence)


def times(value: float) -> str:
    return f"{value:.2f}x"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def hundredths(value: float) -> str:
    """Format a share without the sign %, which a head or a neighbouring cell has."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """Format a difference of two shares, in points."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def chance(value: float) -> str:
    """Format a p for a table."""
    return "<.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def p_equals(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}" if value < 0.1 else f"p = {value:.2f}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def of(entry: Entry, metric: str, form: Form) -> Number:
    """Return an entry's metric as a number."""
    return Number(metric, entry.label, entry.metrics[metric], form(entry.metrics[metric]))


def span(entry: Entry, metric: str, form: Form) -> list[str | Number]:
    """Return a metric's 95 % interval: `1.80x to 2.05x`."""
    return [of(entry, f"{metric}_low", form), " to ", of(entry, f"{metric}_high", form)]
