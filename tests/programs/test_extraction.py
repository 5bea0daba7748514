"""Which part of a text is the program."""

from __future__ import annotations

import pytest

from specexp.programs.extraction import as_python, completed, is_python, program_of

FENCED = "Here it is:\n```python\ndef f():\n    return 1\n```\nIt returns 1.\n```\nf()\n```\n"


@pytest.mark.parametrize(
    "text,finished,program",
    [
        (FENCED, True, "def f():\n    return 1"),
        (FENCED, False, "def f():\n    return 1"),
        ("```\nx = 1\n```\n```py\nx = 2\n```", True, "x = 2"),
        ("```sh\nls\n```", True, "ls"),
        ("```python\nx = 1\n", True, "x = 1"),
        ("```python\nx = 1\n", False, None),
        ("    return a + b\n", True, "    return a + b"),
        ("    return a + b\n", False, None),
        ("```python\n```", True, None),
        (" \n", True, None),
        ("", True, None),
        ("text with ``` in a line\nx = 1", True, "text with ``` in a line\nx = 1"),
    ],
)
def test_the_program_is_in_the_code_block_or_is_the_text(text: str, finished: bool, program: str | None) -> None:
    assert program_of(text, finished) == program


def test_of_several_blocks_the_last_one_can_be_meant() -> None:
    text = "```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```"
    assert program_of(text, True) == "x = 1"
    assert program_of(text, True, last=True) == "x = 2"


def test_a_completion_follows_its_prompt_and_ends_before_other_text() -> None:
    start = 'import math\n\ndef f(x):\n    """Half of x."""\n'
    assert completed(start, "    return x / 2\n\nThis halves x. Isn't it?", "f") == f"{start}    return x / 2\n\n"
    assert completed(start, "return x / 2", "f") == f"{start}    return x / 2"
    whole = "def f(x):\n    return math.floor(x / 2)"
    assert completed(start, whole, "f") == f"{start.rstrip()}\n\n{whole}"
    assert is_python(completed(start, whole, "f"))
    assert as_python("", "x = (\n") == "x = (\n", "what is no program in any length stays as it is"
    assert not is_python("(" * 5000)
    assert is_python("x = '\\d'")
