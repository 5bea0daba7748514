"""The tests of tests/harness catch seeded bugs of specexp.lm_eval, in the environment of `make test-lm-eval`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; make test-nightly runs this")

from helpers.seeded_bugs import HARNESS_BUGS, Bug

TESTS = Path(__file__).resolve().parents[1]
FILES = ["harness/test_harness_model.py"]
FAILED = 1  # pytest's exit code where tests ran and some failed
NOTHING = Bug("the unchanged package", "specexp.no_such_module", "", "")


@pytest.mark.nightly
def test_seeded_bugs_of_the_harness_s_model_are_caught() -> None:
    bugs = [NOTHING, *HARNESS_BUGS]
    result = subprocess.run(
        [sys.executable, str(TESTS / "helpers" / "run_seeded_bugs.py")],
        input=json.dumps([FILES, [asdict(bug) for bug in bugs], "not nightly"]),
        cwd=TESTS.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (code, output), *outcomes = json.loads(result.stdout)
    assert code == 0, output
    lived = [bug.name for bug, (code, _) in zip(HARNESS_BUGS, outcomes, strict=True) if code != FAILED]
    assert not lived
