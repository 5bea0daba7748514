"""Reads numbers back from a rendered report."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Shown:
    """A number on the page: its metric, its run, its full value, and its text."""

    metric: str
    run: str
    value: float
    text: str = ""

    def agrees(self) -> bool:
        """True if the text is the value, rounded, as it is, in per cent or in thousandths."""
        below = re.search(r"<\s?0?\.001", self.text)
        if below:
            return self.value < 0.001
        number = re.search(r"[+\u2212-]?[\d,]*\.?\d+", self.text)
        assert number is not None, self
        digits = number[0].replace(",", "").replace("\u2212", "-")
        half = 0.5 * 10.0 ** -len(digits.partition(".")[2])
        return any(abs(float(digits) - scale * self.value) <= half * 1.001 for scale in (1, 100, 1000))


@dataclass
class Page(HTMLParser):
    """`numbers` of a page; `loose` are the digits in tables of values that have no data attributes."""

    numbers: list[Shown] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: Shown | None = None
        self._values = False
        self._cell = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.addresses += [attributes[key] for key in ("src", "href") if key in attributes]
        if "data-metric" in attributes:
            self._open = Shown(attributes["data-metric"], attributes["data-run"], float(attributes["data-value"]))
            self.numbers.append(self._open)
        if tag == "table":
            self._values = "values" in attributes.get("class", "").split()
            self._named = "named" in attributes.get("class", "").split()
        elif tag == "tr":
            self._cell = 0
        elif tag == "td":
            self._cell += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open = None
        elif tag == "table":
            self._values = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open is not None:
            self._open.text += data
        elif self._values and self._cell > (2 if self._named else 1) and re.search(r"\d", data):
            self.loose.append(data)


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page
