"""What exceptions of libraries become in a message of ours."""

from __future__ import annotations

import pytest

from specexp.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("no such file\nmore of it", "no such file"),
        ("\nfailed:\nTraceback (most recent call last):\n  ...\nOSError: full\n", "failed: OSError: full"),
        ("what follows:", "what follows:"),
        ("", "OSError"),
    ],
)
def test_the_first_line_of_a_message_says_what_happened(message: str, line: str) -> None:
    assert first_line(OSError(message)) == line


def test_a_message_that_says_nothing_may_be_given() -> None:
    assert first_line(OSError(), otherwise="it ended") == "it ended"
