"""The outcomes of tests, what one test leaves to the next, and what the sandbox says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.sandboxes import SMALL, sandbox_of
from specexp.errors import TaskError
from specexp.sandbox import modes
from specexp.sandbox.job import CallTest, CodeTest, InputTest, Limits, ProgramOutcome
from specexp.sandbox.modes import Confinement, pids_folder, unprotected
from specexp.sandbox.sandbox import Sandbox

BOTH = ("bubblewrap", "subprocess")


@pytest.fixture(scope="module", params=BOTH)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_of(request.param)


def test_each_test_has_its_own_outcome(sandbox: Sandbox) -> None:
    program = (
        "import sys\n"
        "def f(x):\n"
        "    if x == 2: return 5\n"
        "    if x == 3: raise KeyError('three')\n"
        "    while x == 4: pass\n"
        "    if x == 5: return bytearray(1 << 30)\n"
        "    if x == 6: print('y' * 100_000)\n"
        "    if x == 7: sys.exit(0)\n"
        "    if x == 8: import os; os._exit(0)\n"
        "    return x\n"
    )
    outcomes = sandbox.run(program, [CodeTest(f"assert f({x}) == {x}, 'wrong'") for x in range(1, 9)])
    assert outcomes == [
        ProgramOutcome("passed"),
        ProgramOutcome("failed", "AssertionError: wrong"),
        ProgramOutcome("error", "KeyError: 'three'"),
        ProgramOutcome("timeout", "it took more than 0.8 s"),
        ProgramOutcome("memory", "no memory was left"),
        ProgramOutcome("output", "it printed more than 16384 bytes"),
        ProgramOutcome("error", "it ended with SystemExit(0)"),
        ProgramOutcome("error", "it ended the process with code 0"),
    ]


def test_a_program_that_cannot_be_loaded_has_one_outcome_for_all_tests(sandbox: Sandbox) -> None:
    tests = [CodeTest("pass"), CodeTest("pass")]
    assert (
        sandbox.run("def f(:", tests)
        == [ProgramOutcome("error", "SyntaxError: invalid syntax (program.py, line 1)")] * 2
    )
    assert sandbox.run("assert False", tests) == [ProgramOutcome("error", "AssertionError")] * 2
    assert sandbox.run("while True: pass", tests) == [ProgramOutcome("timeout", "it took more than 0.8 s")] * 2


def test_no_test_sees_what_another_one_left(sandbox: Sandbox) -> None:
    add = CodeTest("seen.append(1)\nassert seen == [1]\nopen('left', 'a').write('x')")
    assert [each.kind for each in sandbox.run("seen = []", [add, add])] == ["passed", "passed"]


def test_calls_and_inputs_are_compared_by_value(sandbox: Sandbox) -> None:
    calls = [CallTest("pair", (1, [2]), [[1, [2]]]), CallTest("pair", (1, 2), [1]), CallTest("none", (), 0)]
    outcomes = sandbox.run("class Solution:\n    def pair(self, a, b): return [(a, b)]\n", calls)
    assert [each.kind for each in outcomes] == ["passed", "failed", "error"]
    assert outcomes[1].reason == "[[1, 2]], not [1]"
    program = "total = sum(float(part) for part in input().split())\nprint(total)\nprint(' done ')"
    inputs = [InputTest("1 2", "3\ndone\n"), InputTest("1 2", "3.5\ndone"), InputTest("1 2", "3"), InputTest("", "0")]
    outcomes = sandbox.run(program, inputs)
    assert [each.kind for each in outcomes] == ["passed", "failed", "failed", "error"]
    assert [each.reason for each in outcomes[1:3]] == ["line 1 is '3.0', not '3.5'", "2 lines, not 1"]
    assert sandbox.run("import sys\nprint(1)\nsys.exit(3)", [InputTest("", "1")]) == [ProgramOutcome("passed")]


def test_two_runs_draw_and_hash_alike(sandbox: Sandbox) -> None:
    program = "import random\nprint(random.random(), hash('text'), sorted({'a', 'b', 'c'}, key=hash))"
    (first,) = sandbox.run(program, [InputTest("", "nothing")])
    (again,) = sandbox.run(program, [InputTest("", "nothing")])
    assert first == again
    assert first.kind == "failed"


def test_all_tests_together_have_a_limit(sandbox: Sandbox) -> None:
    program = "import time\ndef f(): time.sleep(0.3)"
    limited = Sandbox(Limits(test_seconds=0.5, program_seconds=0.7), [sandbox.protection.mode])
    outcomes = limited.run(program, [CodeTest("f()")] * 5)
    assert outcomes[0] == ProgramOutcome("passed")
    assert outcomes[-1] == ProgramOutcome("timeout", "all tests together took more than 0.7 s")


def test_without_tests_nothing_runs() -> None:
    assert Sandbox(SMALL, []).run("x", []) == []
    with pytest.raises(TaskError, match=r"no sandbox runs a trivial program here \(there is none\)"):
        Sandbox(SMALL, []).run("x", [CodeTest("pass")])


def test_the_note_says_which_sandbox_it_is_and_what_is_not_protected() -> None:
    note = sandbox_of("subprocess").protection.note()
    assert note.startswith("programs run in a subprocess with resource limits (bubblewrap is not installed")
    for words in ("the network", "files that", "home folders", "256 MiB of memory each", "0.8 s a test"):
        assert words in note
    best = sandbox_of("bubblewrap").protection
    assert best.note().startswith("programs run in bubblewrap: at most 8 processes (")
    assert best.note().endswith("Not protected: nothing that is known.")


def test_a_broken_bubblewrap_is_named_and_not_used(tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no permissions to make a namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    others = [mode for mode in modes.modes() if not mode.bubblewrap]
    protection = Sandbox(SMALL, [Confinement(str(broken)), *others]).protection
    assert protection.name == "subprocess"
    assert "(bubblewrap does not work here: bwrap: no permissions to make a namespace)" in protection.note()


def test_root_without_a_cgroup_and_with_its_id_has_no_limit_on_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert "the number of processes (limits do not bind root)" in unprotected(Confinement(), SMALL)
    assert unprotected(Confinement("/usr/bin/bwrap", uid=60706), SMALL) == []
    assert Confinement(uid=60706).processes == "the user id is given up (0 for 60706)"
    assert Confinement(cgroup="/sys/fs/cgroup/pids").processes == "a cgroup counts them"
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert Confinement().processes == "the user is not root"
    assert not any("number of processes" in each for each in unprotected(Confinement(), SMALL))


@pytest.mark.parametrize("version", [1, 2])
def test_a_cgroup_is_used_where_its_controller_counts_processes(tmp_path: Path, version: int) -> None:
    own = tmp_path / "own"
    folder = tmp_path / "pids" / "group" if version == 1 else tmp_path / "group"
    folder.mkdir(parents=True)
    own.write_text("4:memory:/other\n8:pids:/group\n" if version == 1 else "0::/group\n")
    assert pids_folder(own, tmp_path) == "", "no controller"
    name = "cgroup.procs" if version == 1 else "cgroup.subtree_control"
    (folder / name).write_text("memory pids\n")
    assert pids_folder(own, tmp_path) == str(folder)
    assert pids_folder(tmp_path / "missing", tmp_path) == ""
