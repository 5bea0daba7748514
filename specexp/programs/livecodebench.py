"""The tests of a LiveCodeBench problem (Jain et al. 2403.07974) in the form of its releases (`code_generation_lite`).

`public_test_cases` is a JSON list of {input, output, testtype}; `private_test_cases` is one, too, or that text pickled,
compressed by zlib and in base64. A pickle can run code when it is read, so it is read by an unpickler that knows no
names: a text needs none. `testtype` is stdin (the whole program, which reads and prints) or functional (arguments, one
JSON value a line, of the function `func_name` in `metadata`).
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

from specexp.errors import first_line
from specexp.sandbox.job import CallTest, InputTest, ProgramTest

LONGEST = 1 << 28  # characters of tests that are unpacked
# The names that its harness gives to every program. The builtins come after the modules whose names hide them (`pow` of
# math and operator, `open` of io), and the modules last, so that both bisect_left and bisect.bisect_left are there.
MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json",
)  # fmt: skip
PRELUDE = (
    "".join(f"from {name} import *\n" for name in (*MODULES, "builtins", "typing"))
    + "import "
    + ", ".join(MODULES)
    + "\nsys.setrecursionlimit(50000)\n"
)


class _NoNames(pickle.Unpickler):
    """Reads plain values only: whatever would import a name is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}; only a text is read")


def tests_of(values: Mapping[str, Any]) -> tuple[ProgramTest, ...]:
    """Return the tests of a row, the public ones first. Raises ValueError that says what is wrong with it."""
    function = _json(values.get("metadata") or "{}", "metadata").get("func_name")
    cases = [*_cases(values.get("public_test_cases") or "[]", "public_test_cases")]
    cases += _cases(_unpacked(values.get("private_test_cases") or "[]"), "private_test_cases")
    if not cases:
        raise ValueError("it has no test cases")
    return tuple(_test(case, function) for case in cases)


def _test(case: Any, function: Any) -> ProgramTest:
    if not isinstance(case, dict) or not all(isinstance(case.get(key), str) for key in ("input", "output", "testtype")):
        raise ValueError("a test case must have the texts 'input', 'output' and 'testtype'")
    if case["testtype"] == "stdin":
        return InputTest(case["input"], case["output"])
    if case["testtype"] != "functional":
        raise ValueError(f"testtype is {case['testtype']!r}; it must be stdin or functional")
    if not isinstance(function, str) or not function.isidentifier():
        raise ValueError("'metadata' must have the name of the function as 'func_name'")
    arguments = tuple(_json(line, "input") for line in case["input"].split("\n") if line.strip())
    return CallTest(function, arguments, _json(case["output"], "output"))


def _cases(text: Any, key: str) -> list[Any]:
    result = _json(text, key)
    if not isinstance(result, list):
        raise ValueError(f"'{key}' must be a list of test cases")
    return result


def _json(text: Any, key: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ValueError(f"'{key}' is no JSON: {error}") from None


def _unpacked(text: Any) -> Any:
    """Return private test cases as JSON text, whether they are packed or not."""
    if not isinstance(text, str) or text.lstrip()[:1] in ("[", "{"):
        return text
    try:
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(base64.b64decode(text, validate=True), LONGEST)
        if unpacker.unconsumed_tail:
            raise ValueError(f"it is longer than {LONGEST} bytes")
        result = _NoNames(io.BytesIO(packed)).load()
    except Exception as error:  # what a broken or hostile pickle raises has no one type
        raise ValueError(f"'private_test_cases' cannot be unpacked: {first_line(error)}") from None
    if not isinstance(result, str | bytes):
        raise ValueError(f"'private_test_cases' holds a pickled {type(result).__name__}, not a text")
    return result if isinstance(result, str) else result.decode("utf-8")
