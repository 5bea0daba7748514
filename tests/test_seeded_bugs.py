"""The tests' own test: each of these bugs makes the test files named with it fail, and none by naming what is gone."""

from __future__ import annotations

import ast
import builtins
import io
import json
import keyword
import re
import signal
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import seeded_bugs
from helpers.seeded_bugs import BLOCK_BUGS, FILE_BUGS, Bug

TESTS = Path(__file__).resolve().parent
LISTS = [bugs for name, bugs in vars(seeded_bugs).items() if name.endswith("BUGS") and isinstance(bugs, list)]
ALL_BUGS = [bug for bugs in (*LISTS, *FILE_BUGS.values(), *BLOCK_BUGS.values()) for bug in bugs]
FAILED = 1  # pytest's exit code where tests ran and some failed; a bug that breaks the import is none
NOTHING = Bug("the unchanged package", "specexp.no_such_module", "", "")


@pytest.mark.nightly
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


BOUND = re.compile(r"\bfor (\w+)(?:, (\w+))? in |(?<![.\w])(\w+) :?= ")  # names that a text itself gives a value


def source_of(module: str) -> Path:
    path = TESTS.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names(source: str) -> Iterator[str]:
    """The identifiers of Python source, or of a part of it that no parser takes."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                yield token.string
    except (tokenize.TokenError, IndentationError):
        return  # it ends inside a bracket or an indented block: all its tokens were given


@cache
def names_near(source: str) -> set[str]:
    """The names that a module uses, and those of the package's modules that it imports, of arrays and of builtins."""
    known = {*names(source), *keyword.kwlist, *dir(builtins), *dir(list), *dir(dict), *dir(np), *dir(torch)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("specexp."):
            imported = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for path in filter(Path.is_file, map(source_of, imported)):
                known.update(names(path.read_text()))
    return known


def undefined(bugs: list[Bug], folder: Path) -> dict[str, list[str]]:
    """The bugs whose text names what does not exist, which any test would catch: {name: what was said of it}."""
    result: dict[str, list[str]] = {}
    for place, bug in enumerate(bugs):
        source = source_of(bug.module).read_text()
        if source.count(bug.old) != 1:
            result[bug.name] = [f"its text is in {bug.module} {source.count(bug.old)} times"]
            continue
        mutated = source.replace(bug.old, bug.new)
        (folder / f"{place}.py").write_text(mutated)
        bound = {name for match in BOUND.findall(bug.new) for name in match}
        # Attributes, too, which ruff does not look up.
        if unknown := sorted(set(names(mutated)) - names_near(source) - bound):
            result[bug.name] = [f"neither in {bug.module} nor in what it imports: {', '.join(unknown)}"]
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json"]
    checked = subprocess.run([*ruff, str(folder)], capture_output=True, text=True, check=False)
    for fault in json.loads(checked.stdout):
        result.setdefault(bugs[int(Path(fault["filename"]).stem)].name, []).append(fault["message"])
    return result


def test_seeded_bugs_name_only_what_exists(tmp_path: Path) -> None:
    assert len(ALL_BUGS) > 200
    assert not undefined(ALL_BUGS, tmp_path)


def test_a_bug_that_names_what_is_gone_is_found(tmp_path: Path) -> None:
    old = "self._indexed = max(self._indexed, len(ids))"
    module = "specexp.engine.ngram_lookup"
    bugs = [
        Bug("a variable that is gone", module, old, "self._indexed = max(self._indexed, len(vanished))"),
        Bug("an attribute that is gone", module, old, "self._vanished = max(self._indexed, len(ids))"),
        Bug("an attribute of another part", module, old, "self._indexed = max(self.temperature, len(ids))"),
        Bug("neither", module, old, "self._indexed = len(ids)"),
    ]
    assert sorted(undefined(bugs, tmp_path)) == [
        "a variable that is gone", "an attribute of another part", "an attribute that is gone",
    ]  # fmt: skip


@pytest.mark.slow
def test_tests_that_a_bug_makes_wait_for_ever_are_ended_and_do_not_count_as_failed(tmp_path: Path) -> None:
    (tmp_path / "test_waiting.py").write_text("import threading\n\ndef test_it():\n    threading.Event().wait()\n")
    code = "import json, sys; from helpers import run_seeded_bugs as r; print(json.dumps(r.run(*json.load(sys.stdin))))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([[str(tmp_path / "test_waiting.py")], asdict(NOTHING), "", 5]),
        cwd=TESTS, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ended, output = json.loads(result.stdout)
    assert ended == -signal.SIGABRT
    assert "in test_it" in output
