"""Attacks on the sandbox, contained. Each limits itself, so that nothing happens to a machine where one succeeds."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from helpers.sandboxes import SMALL, left_running, sandbox_of
from specexp.sandbox.job import MIB, CodeTest, ProgramOutcome
from specexp.sandbox.sandbox import Sandbox

BOTH = ("bubblewrap", "subprocess")


@pytest.fixture(scope="module")
def sandboxes() -> dict[str, Sandbox]:
    return {}


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, sandboxes: dict[str, Sandbox]) -> Sandbox:
    kind = request.param
    if kind not in sandboxes:
        sandboxes[kind] = sandbox_of(kind)
    return sandboxes[kind]


in_both = pytest.mark.parametrize("sandbox", BOTH, indirect=True)
in_bubblewrap = pytest.mark.parametrize("sandbox", BOTH[:1], indirect=True)


def attack(sandbox: Sandbox, program: str) -> ProgramOutcome:
    """The outcome of a program that passes where its attack succeeds."""
    (outcome,) = sandbox.run(program, [CodeTest("pass")])
    assert left_running() == []
    return outcome


@in_both
def test_a_fork_bomb_makes_no_more_processes_than_allowed(sandbox: Sandbox) -> None:
    """200 children at most, each of which ends by itself after two seconds."""
    program = (
        "import os, time\n"
        "count = 0\n"
        "try:\n"
        "    for _ in range(200):\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(2)\n"
        "            os._exit(0)\n"
        "        count += 1\n"
        "except BlockingIOError:\n"
        "    raise ValueError(f'{count} children')\n"
    )
    if not sandbox.protection.processes or sandbox.protection.processes == "no limit binds":
        assert "the number of processes (limits do not bind root)" in sandbox.protection.unprotected
        pytest.skip("the report says that nothing limits processes here")
    outcome = attack(sandbox, program)
    assert outcome.kind == "error"
    assert outcome.reason.startswith("ValueError: ")
    assert 1 <= int(outcome.reason.split()[1]) <= SMALL.processes + 3


@in_both
def test_an_endless_loop_ends(sandbox: Sandbox) -> None:
    outcome = attack(sandbox, "while True: pass")
    assert outcome == ProgramOutcome("timeout", "it took more than 0.8 s")


@in_both
def test_a_memory_hog_gets_no_gigabyte(sandbox: Sandbox) -> None:
    assert attack(sandbox, f"x = bytearray({1 << 30})") == ProgramOutcome("memory", "no memory was left")


@in_bubblewrap
def test_a_full_disk_is_that_of_the_scratch_folder(sandbox: Sandbox) -> None:
    """64 MiB at most, in files of one."""
    program = f"for i in range(64):\n    with open(f'file{{i}}', 'wb') as file:\n        file.write(bytes({MIB}))\n"
    outcome = attack(sandbox, program)
    assert outcome.kind == "error"
    assert "No space left on device" in outcome.reason


@in_both
def test_a_file_grows_to_its_limit(sandbox: Sandbox) -> None:
    outcome = attack(sandbox, f"with open('file', 'wb') as file: file.write(bytes({3 * MIB}))")
    assert outcome.kind == "error"
    assert "File too large" in outcome.reason


@in_both
def test_a_signal_to_the_parent_ends_this_program_alone(sandbox: Sandbox) -> None:
    outcome = attack(sandbox, "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(0.2)")
    assert outcome.kind in ("error", "timeout")
    assert sandbox.run("x = 1", [CodeTest("assert x == 1")]) == [ProgramOutcome("passed")]


@in_bubblewrap
def test_processes_outside_are_out_of_reach(sandbox: Sandbox) -> None:
    """Signal 0 asks whether a process could be signalled, and does nothing."""
    outcome = attack(sandbox, f"import os\nos.kill({os.getpid()}, 0)")
    assert outcome.kind == "error"
    assert outcome.reason.startswith("ProcessLookupError")


@in_bubblewrap
def test_home_folders_and_files_of_others_cannot_be_read(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    assert attack(sandbox, f"open({str(secret)!r}).read()").reason.startswith("FileNotFoundError")
    home = Path(os.path.expanduser("~")).resolve()
    prefix = Path(sys.base_prefix).resolve()
    seen = {prefix.relative_to(home).parts[0]} if prefix.is_relative_to(home) else set()
    program = f"import os\nif not set(os.listdir({str(home)!r})) - {seen!r}: raise ValueError('nothing to see')"
    assert attack(sandbox, program).kind == "error"


@in_both
def test_the_environment_says_nothing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    assert attack(sandbox, "import os\nos.environ['SECRET_TOKEN']").reason == "KeyError: 'SECRET_TOKEN'"


@in_bubblewrap
def test_the_network_is_out_of_reach(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        outcome = attack(sandbox, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 0.5)")
        assert outcome.kind == "error"
        with pytest.raises(BlockingIOError):
            server.accept()


@in_both
def test_a_flood_of_output_is_cut(sandbox: Sandbox) -> None:
    outcome = attack(sandbox, "for _ in range(5000): print('x' * 1000)")
    assert outcome == ProgramOutcome("output", f"it printed more than {SMALL.output_bytes} bytes")


@in_bubblewrap
@pytest.mark.parametrize(
    "path", ["/specexp-escaped", "/usr/specexp-escaped", "/etc/x", "/dev/x", "/dev/shm/x", "/tmp/x"]
)
def test_nothing_is_written_outside_the_scratch_folder(sandbox: Sandbox, path: str) -> None:
    assert attack(sandbox, f"open({path!r}, 'w').write('x')").kind == "error"
    assert not Path("/specexp-escaped").exists()
    assert not Path("/usr/specexp-escaped").exists()


@in_both
def test_a_process_in_a_session_of_its_own_does_not_outlive_its_test(sandbox: Sandbox) -> None:
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(2)\n"
        "    os._exit(0)\n"
    )
    assert attack(sandbox, program) == ProgramOutcome("passed")


@in_bubblewrap
def test_the_user_is_nobody_else(sandbox: Sandbox) -> None:
    """As root, the user id is given up, and cannot be had back."""
    outcome = attack(sandbox, "import os\nif os.getuid() == 0: raise ValueError('root')\nos.setuid(0)")
    assert outcome.kind == "error"
    assert "root" not in outcome.reason
