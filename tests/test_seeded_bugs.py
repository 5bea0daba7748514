"""The tests' own test: each of these bugs makes the test files named with it fail."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from helpers.seeded_bugs import FILE_BUGS, Bug

TESTS = Path(__file__).resolve().parent
FAILED = 1  # pytest's exit code where tests ran and some failed; a bug that breaks the import is none
NOTHING = Bug("the unchanged package", "specexp.no_such_module", "", "")


@pytest.mark.slow
@pytest.mark.parametrize("files", FILE_BUGS, ids="+".join)
def test_seeded_bugs_fail_the_tests_of_their_files(files: tuple[str, ...]) -> None:
    bugs = [NOTHING, *FILE_BUGS[files]]
    result = subprocess.run(
        [sys.executable, str(TESTS / "helpers" / "run_seeded_bugs.py")],
        input=json.dumps([files, [asdict(bug) for bug in bugs]]),
        cwd=TESTS.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (code, output), *outcomes = json.loads(result.stdout)
    assert code == 0, output
    lived = {bug.name: output for bug, (code, output) in zip(FILE_BUGS[files], outcomes, strict=True) if code != FAILED}
    assert not lived, "\n".join([f"lived: {', '.join(lived)}", *(text[-2000:] for text in lived.values())])
