"""The tests of HumanEval's and LiveCodeBench's rows."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import zlib
from typing import Any

import pytest

from specexp.programs import humaneval, livecodebench
from specexp.sandbox.job import CallTest, InputTest

CHECK = "import math\n\ndef check(candidate):\n"


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def outcomes(test: str, function: Any) -> list[bool]:
    result = []
    for each in humaneval.tests_of(test, "f"):
        try:
            exec(each.code, {"f": function})
            result.append(True)
        except AssertionError:
            result.append(False)
    return result


def test_every_assertion_of_a_check_is_a_test() -> None:
    test = (
        CHECK + "    assert candidate(1) == 1\n    y = 2\n    assert candidate(y) == 4\n    assert candidate(3) == 3\n"
    )
    assert outcomes(test, lambda x: x) == [True, False, True]
    assert outcomes(test, lambda x: 4) == [False, True, False]
    loop = CHECK + "    assert candidate(0) == 0\n    for i in range(3):\n        assert candidate(i) == i\n"
    assert outcomes(loop, lambda x: 0) == [True, False]


@pytest.mark.parametrize(
    "body",
    [
        "    assert candidate(1) == 1\n",
        "    for i in range(2):\n        assert candidate(i) == i\n    assert candidate(i) == i\n",
        "    if candidate(1) != 1:\n        return\n    assert candidate(1) == 1\n    assert candidate(2) == 2\n",
        "    assert (y := candidate(1)) == 1\n    assert candidate(y) == 1\n",
    ],
)
def test_a_check_that_cannot_be_taken_apart_is_one_test(body: str) -> None:
    assert outcomes(CHECK + body, lambda x: x) == [True]


def test_a_text_without_check_has_no_tests() -> None:
    with pytest.raises(ValueError, match="it defines no function check"):
        humaneval.tests_of("x = 1", "f")


STDIN = {"input": "1 2\n", "output": "3\n", "testtype": "stdin"}
CALL = {"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}


def test_public_and_private_cases_are_read_in_both_forms() -> None:
    expected = (InputTest("1 2\n", "3\n"), CallTest("shift", ([1, 2], 3), [4, 5]))
    for private in (json.dumps([CALL]), packed(json.dumps([CALL]))):
        row = {
            "public_test_cases": json.dumps([STDIN]), "private_test_cases": private,
            "metadata": json.dumps({"func_name": "shift"}),
        }  # fmt: skip
        assert livecodebench.tests_of(row) == expected


class Hostile:
    """Unpickled the usual way, it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    "row,message",
    [
        ({}, "it has no test cases"),
        ({"private_test_cases": packed(Hostile())}, "it names posix.system; only a text is read"),
        ({"private_test_cases": packed([1])}, "holds a pickled list, not a text"),
        ({"private_test_cases": "no base64!"}, "'private_test_cases' cannot be unpacked"),
        ({"private_test_cases": base64.b64encode(b"x").decode()}, "'private_test_cases' cannot be unpacked"),
        ({"public_test_cases": "[1"}, "'public_test_cases' is no JSON"),
        ({"public_test_cases": "{}"}, "'public_test_cases' must be a list of test cases"),
        ({"public_test_cases": json.dumps([{"input": "1"}])}, "a test case must have the texts"),
        ({"public_test_cases": json.dumps([CALL])}, "the name of the function as 'func_name'"),
        ({"public_test_cases": json.dumps([{**STDIN, "testtype": "file"}])}, "it must be stdin or functional"),
    ],
)
def test_a_row_that_has_no_such_form_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        livecodebench.tests_of(row)


@pytest.mark.parametrize(
    "program",
    [
        "assert pow(3, 4, 5) == 1 and abs(-1) == 1 and open is io.open",  # not those of math and operator
        "assert bisect_left([1, 2], 2) == bisect.bisect_left([1, 2], 2) == 1",
        "assert deepcopy([1]) == copy.deepcopy([1])",
        "assert datetime.datetime(2024, 1, 2) - datetime.datetime(2024, 1, 1) == timedelta(1)",
        "assert sqrt(4) == math.sqrt(4) and ascii_lowercase == string.ascii_lowercase and loads('1') == 1",
        "x: List[Optional[int]] = [stdin.fileno(), randint(1, 1)]\nassert Counter(x) == {0: 1, 1: 1}",
        "assert heappop([1]) == 1 and lru_cache(None)(gcd)(4, 6) == 2 and mean([1, 3]) == 2",
        "assert list(accumulate([1, 1])) == [1, 2] and sys.getrecursionlimit() == 50000",
    ],
)
def test_programs_have_the_names_that_the_harness_gives_them(program: str) -> None:
    source = f"{livecodebench.PRELUDE}\n{program}\n"
    result = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
