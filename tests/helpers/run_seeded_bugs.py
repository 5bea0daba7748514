"""Runs test files on bugs: `python tests/helpers/run_seeded_bugs.py` reads [[file, ...], [bug, ...]] as JSON from
standard input, or [[file, ...], [bug, ...], tests to select by their marks]; otherwise those of the fast tier run.

It prints one JSON list: pytest's exit code and output for each bug. The libraries, which take seconds to import, are
imported once; each bug runs in a separate fork, in which the package was never imported. A bug with which tests wait
for ever ends after `BOUND` seconds, with what each thread waits for and the code of a signal: it is not a failed test.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = ("torch", "transformers", "mlflow", "scipy.stats", "sklearn.metrics", "datasets")


FAST, SLOW = "not slow and not nightly", "slow and not nightly"
NO_TESTS = 5  # pytest's exit code where none was selected
BOUND = 3600


def run(paths: list[str], bug: dict[str, str], marks: str = FAST, bound: int = BOUND) -> tuple[int, str]:
    """pytest's exit code and output, on these test files with this bug in the package.

    Where no test of the fast tier fails, those of the slow tier run, too: a bug is caught wherever a test runs.
    """
    code, output = _run(paths, bug, marks, bound)
    if marks == FAST and code in (0, NO_TESTS):
        slow, slow_output = _run(paths, bug, SLOW, bound)
        return (code, output) if slow == NO_TESTS else (slow, slow_output)
    return code, output


def _run(paths: list[str], bug: dict[str, str], marks: str, bound: int) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            os._exit(_tested(paths, bug, marks))
        end, (ended, status) = time.monotonic() + bound, (0, 0)
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGABRT)  # for which pytest prints what all threads do
            _, status = os.waitpid(child, 0)
        out.seek(0)
        return os.waitstatus_to_exitcode(status), out.read()


def _tested(paths: list[str], bug: dict[str, str], marks: str) -> int:
    import pytest

    from helpers.seeded_bugs import Bug, install

    install(Bug(**bug))
    # The libraries bring plugins with them, which are imported by now.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider", "-x", "-q"]
    code = pytest.main([*quiet, "-m", marks, *paths])
    sys.stdout.flush()
    return int(code)


def main() -> None:
    files, bugs, *marks = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        for name in LIBRARIES:
            importlib.import_module(name)
    here = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(here))
    print(json.dumps([run([str(here / name) for name in files], bug, *marks) for bug in bugs]))


if __name__ == "__main__":
    main()
