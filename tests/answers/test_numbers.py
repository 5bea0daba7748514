r"""Numbers in generated text: all of a number is read, or none of it, and equal numbers have one form."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexp.answers import numbers

# What a text says after a marker, and the number that it means.
READ = {
    "9{,}500": "9500", r"9\,500": "9500", r"9,\!500": "9500", "9,500": "9500", "12 000": "12000", "12\xa0000": "12000",
    "12\u202f000": "12000", "12\u2009000": "12000", "1'000": "1000", "9\u200b500": "9500",
    "1/2": "0.5", "1/3": "1/3", "4/2": "2", "½": "0.5", "1½": "1.5", "1 1/2": "1.5", r"\frac{1}{2}": "0.5",
    r"-\frac{1}{2}": "-0.5", r"1\frac{1}{2}": "1.5", r"\frac12": "0.5", r"\dfrac{10}{3}": "10/3",
    "1e3": "1000", "1E-3": "0.001", "1.5e+3": "1500", r"1.5 \times 10^3": "1500", "1.5 × 10^{-3}": "0.0015",
    "10^3": "1000", "-$5": "-5", "$-5": "-5", "$ 5": "5", "$ -5": "-5", r"-\$5": "-5", r"\$5": "5", "$-5$": "-5",
    "+5": "5", "\u22125": "-5", r"\(5\)": "5", r"\[5\]": "5", "**5**": "5", r"\boxed{5}": "5", r"$\boxed{-5}$": "-5",
    r"\boxed{\text{5}}": "5", "`5`": "5", '"5"': "5", "_5_": "5", "$$5$$": "5", "x = 5": "5", "US$5": "5", "5€": "5",
    "€5.50": "5.5", "$29.00": "29", "$1,234.50": "1234.5", "8%": "8", r"8\%": "8", ".5": "0.5", "-.5": "-0.5",
    "007": "7", "-0": "0", "1.234,50": "1234.5", "1.234.567": "1234567", "1 000,5": "1000.5", "５": "5",
    "1,234,567.5": "1234567.5", "12.": "12", "5...": "5", "5!": "5", "5 apples": "5", "5kg": "5", "5th": "5",
    "5°C": "5",
    r"5^\circ": "5", "5 m": "5", "980cm³": "980", r"5\text{ kg}": "5", "5 per day": "5", "5-year": "5", "$5/hour": "5",
    r"5\\": "5", "10 - 2 = 8": "8", "5 * 3 = 15": "15", "5*3=15.": "15", "2 * (3 + 4) = 14": "14",
    r"2 \times 3 = 6": "6", "0.9999999999999999999999999999999": "0.9999999999999999999999999999999",
}  # fmt: skip
# Where a beginning looks like a number, and the whole means none, or one of several.
NONE = [
    "3-9500", "5-10", "5–10", "5 - 10", "$5-$10", "**3**-**5**", "5 to 10", "5%-10%", "1, 2, 3", "5 6", "5 or 6",
    "5; 6", "3 and 4", "2:30", "3 : 4", "2024-05-06", "5.5.5", "1,5", "0,5", "1,2345", "1 234,567", "1,000 000",
    "12  000", "1_000", "0x1F", "5G3", "5x", "5k", "$5M", "3 million", "$3.5 billion", "2 hundred", "5x5", "3D2",
    r"5\sqrt{2}", r"5\pi", "5π", "5^2", "5²", "2^{10}", "2**10", "5 squared", r"5 \times x", "5 + x", "2 x 3", "5±1",
    "5 × (2", "5 - (2 + 1)", "5(3)", r"\boxed{5}/3", "$5$10", "5 plus 3", "5 divided by 3", "3 out of 4", "1e3.5",
    "1e999999", "1/0", "3.33...", "3.3…", r"0.\overline{3}", "0.(3)", "5 hours and 30 minutes", "5 feet 10 inches",
    "5 and a half", "--5", "-–5", "9" * 400,
]  # fmt: skip
NOT_THERE = ["", "five", "about 5", "- $5", "– 5", "(5)", "#5", "= 5", "the 5"]
# The first number is the answer, and what follows is about it.
FIRST = {"18, since 6 = 2": "18", "18 (6 * 3)": "18", "**18** (6 x 3)": "18"}


@pytest.mark.parametrize("text", READ)
def test_a_number_is_read_whole(text: str) -> None:
    assert numbers.leading(f" {text}") == (True, READ[text])
    assert numbers.last(f"That makes, all in all: {text}") == READ[text]


@pytest.mark.parametrize("text", NONE)
def test_what_is_more_than_one_number_is_none(text: str) -> None:
    assert numbers.leading(f" {text}")[1] is None
    assert numbers.last(f"That makes, all in all: {text}") is None


@pytest.mark.parametrize("text", FIRST)
def test_what_comes_after_a_number_and_its_word_is_no_part_of_it(text: str) -> None:
    assert numbers.leading(text) == (True, FIRST[text])


@pytest.mark.parametrize("text", NOT_THERE)
def test_a_number_that_does_not_come_at_once_is_not_there(text: str) -> None:
    assert numbers.leading(text) == (False, None)


@pytest.mark.parametrize(
    "text,number",
    [
        ("She has 5 - 2 = 3 left.", "3"),
        ("2 + 2 = 4", "4"),
        ("12+12=<<12+12=24>>24 apples", "24"),
        ("| 5 | 6 |", "6"),
        ("- 5 apples", "5"),
        ("It is 3. 5 more came", "5"),
        ("so 12 000 people", "12000"),
        ("net proceeds of $400 000 - $282 000 = $118 000.", "118000"),
        ("60g * 4/5 = 240g/5 = 48 grams", "48"),
        ("f(x)=-5", "-5"),
        ("Total: -5.", "-5"),
        ("COVID-19", None),
        ("vitamin A4", None),
        ("x^5", None),
        (r"\sqrt{5}", None),
        ("a-5", None),
        ("(3+2)-5", None),
        ("apples - 5", None),
        ("None at all.", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert numbers.last(text) == number


@pytest.mark.parametrize(
    "text,number",
    [("29", "29"), ("$29.00", "29"), (" 8% ", "8"), ("-5.", "-5"), ("5 apples", None), ("12/05/2024", None),
     ("A", None), ("1, 2", None), ("", None), ("3 million", None), ("1e-07", "0.0000001"), ("inf", None),
     ("2 + 2 = 4", None)],
)  # fmt: skip
def test_a_whole_text_that_is_a_number(text: str, number: str | None) -> None:
    assert numbers.whole(text) == number
    assert numbers.is_number(text) is (number == text)


@pytest.mark.parametrize(
    "text",
    ["12.", "12", "12 ", "12,", "12 000", "12/", "12 m", "12 hours and ", "$12$", "12 = ", "-", "", "$", "12 and a"],
)
def test_a_number_that_an_unfinished_text_may_go_on_with_is_none_yet(text: str) -> None:
    assert numbers.leading(text, finished=False) == (True, None)


@pytest.mark.parametrize("text", ["12\n", "12. Then", "12 apples are left over"])
def test_a_number_in_an_unfinished_text_that_cannot_go_on(text: str) -> None:
    assert numbers.leading(text, finished=False) == (True, "12")


SEPARATORS = [",", "{,}", r"\,", " ", "\xa0", "\u202f", "\u2009", "'"]
AROUND = [
    ("", ""), ("$", ""), (r"\$", ""), ("$", "$"), (r"\(", r"\)"), (r"\[ ", r" \]"), ("**", "**"), (r"\boxed{", "}"),
    (r"$\boxed{", "}$"), ("€ ", ""), ("", "%"), ("", " dollars"), ("", ".\n"), ("*", "*"), (r"\text{", " kg}"),
]  # fmt: skip


@st.composite
def written(draw: st.DrawFn) -> tuple[Fraction, str]:
    """A number, and one of the ways to write it."""
    whole = draw(st.integers(0, 10**12))
    digits = draw(st.sampled_from(["", *"05", "25", "125", "0001"]))
    sign = draw(st.sampled_from(["", "-", "+", "\u2212"]))
    separator = draw(st.sampled_from(["", *SEPARATORS]))
    opening, closing = draw(st.sampled_from(AROUND))
    text = f"{whole:,}".replace(",", separator) + (f".{digits}" if digits else "")
    outside = draw(st.booleans()) and opening != "*" and not opening.endswith(" ")
    text = f"{sign}{opening}{text}{closing}" if outside else f"{opening}{sign}{text}{closing}"
    value = Fraction(f"{whole}.{digits or 0}")
    return (-value if sign in ("-", "\u2212") else value), text


@settings(max_examples=150, deadline=None, derandomize=True)
@given(written())
def test_however_it_is_written_a_number_is_itself(pair: tuple[Fraction, str]) -> None:
    value, text = pair
    assert numbers.leading(f" {text}") == (True, numbers.canonical(value)), text
    assert numbers.last(f"So it is: {text}") == numbers.canonical(value), text


PARTS = st.sampled_from([
    *"0123456789", *",.-+/*:='$%({}) \n", "12", "000", "500", r"\,", "{,}", "e", "x", "**", r"\frac{", r"\boxed{",
    " and ", " million", " hours", "kg", "½", "²", "\xa0", " a half", " apples", r"\pi", "…", "^",
])  # fmt: skip


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(PARTS, min_size=1, max_size=9), st.integers(1, 30))
def test_a_text_cut_anywhere_gives_its_number_or_none(parts: list[str], at: int) -> None:
    """What a cut text gives is what the whole text gives, or nothing."""
    text = "".join(parts)
    match, number = numbers.leading(text[:at], finished=False)
    if number is not None:
        assert numbers.leading(text) == (True, number), (text, text[:at])
    elif not match:
        assert not numbers.leading(text)[0], (text, text[:at])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.fractions(), st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_a_canonical_text_is_read_as_itself(fraction: Fraction, decimal: Decimal) -> None:
    for value in (fraction, Fraction(decimal)):
        text = numbers.canonical(value)
        assert numbers.whole(text) == text
        assert Fraction(text) == value


@pytest.mark.parametrize(
    "piece",
    [
        "1 ",
        "1,",
        " ",
        "-",
        "1",
        "{",
        r"\frac{1",
        "$",
        "1 - ",
        "5 and ",
        ".",
        "_",
        "\\",
        "1 hour ",
        "(",
        "1:",
        "* ",
        "= ",
    ],
)
def test_a_long_text_takes_no_longer_than_its_length(piece: str) -> None:
    """A pattern that backtracks would not come back from these."""
    text = piece * 4_000
    numbers.last(text)
    numbers.leading(text)
    numbers.whole(text)
