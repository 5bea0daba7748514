"""Runs a program with its tests in the best mode that works on this machine, and says which one that is."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from specexp.errors import TaskError
from specexp.sandbox.job import ERROR, MIB, TIMEOUT, CodeTest, Limits, ProgramOutcome, ProgramTest, job_of
from specexp.sandbox.modes import ENVIRONMENT, MARK, SCRATCH, Confinement, command, modes, most_processes, unprotected

SOURCE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
GRACE = 10.0  # seconds beyond the program's own that starting and reporting may take
MOST_REPORT = MIB * 4  # bytes of a report
TRIAL = CodeTest("import decimal, json, statistics\nassert json.loads('[1]') == [decimal.Decimal(1)]")


@dataclass(frozen=True, slots=True)
class Protection:
    """What confines programs here. `unprotected` lists what does not, `refused` why better modes are not used."""

    mode: Confinement
    limits: Limits
    unprotected: tuple[str, ...]
    refused: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """bubblewrap or subprocess."""
        return self.mode.name

    @property
    def processes(self) -> str:
        """What makes the limit on processes bind, for reports."""
        return self.mode.processes or "no limit binds"

    def note(self) -> str:
        """Describe the sandbox in a note to the user."""
        limits = self.limits
        how = "bubblewrap" if self.mode.bubblewrap else "a subprocess with resource limits"
        text = f"programs run in {how}" + (f" ({'; '.join(self.refused)})" if self.refused else "")
        if self.mode.processes:
            text += f": at most {limits.processes} processes ({self.mode.processes})"
        text += f", {limits.memory_bytes // MIB} MiB of memory each, {limits.test_seconds:g} s a test"
        return f"{text}. Not protected: {'; '.join(self.unprotected) or 'nothing that is known'}."


class Sandbox:
    """Runs programs one after another, in the first of these modes that works, by a trial run; by default of all."""

    def __init__(self, limits: Limits | None = None, choices: Sequence[Confinement] | None = None) -> None:
        self.limits = limits or Limits()
        self._choices = modes() if choices is None else list(choices)

    @cached_property
    def protection(self) -> Protection:
        """What confines programs. The first call tries the modes out. Raises TaskError if none works."""
        refused: list[tuple[Confinement, str]] = []
        for mode in self._choices:
            (outcome,) = self._run(mode, "", (TRIAL,))
            if outcome.passed:
                return Protection(mode, self.limits, tuple(unprotected(mode, self.limits)), _reasons(refused, mode))
            refused.append((mode, outcome.reason))
        tried = "; ".join(f"{mode.name}: {reason}" for mode, reason in refused)
        raise TaskError(f"no sandbox runs a trivial program here ({tried or 'there is none'}).")

    def tried(self) -> Sandbox:
        """Return this sandbox after its trial run. Raises TaskError if none works."""
        assert self.protection
        return self

    def run(self, program: str, tests: Sequence[ProgramTest]) -> list[ProgramOutcome]:
        """Run a program's tests; return the outcome of each."""
        return self._run(self.protection.mode, program, tuple(tests)) if tests else []

    def _run(self, mode: Confinement, program: str, tests: tuple[ProgramTest, ...]) -> list[ProgramOutcome]:
        with _scratch(mode) as scratch, _cgroup(mode, self.limits) as cgroup:
            job = job_of(program, tests, self.limits) | {
                "uid": None if mode.user_namespace else mode.uid,
                "own_pids": bool(mode.bubblewrap),
                "scratch": scratch,
                "cgroup": cgroup,
                "nproc": most_processes(mode, self.limits),
                "parent": os.getpid(),
            }
            mark = f"{os.getpid()}.{time.monotonic_ns()}"
            text = b""
            try:
                arguments = command(mode, self.limits, SOURCE, mark)
                text, errors, ended = _communicate(mode, arguments, job, self.limits, mark)
            finally:
                if not mode.bubblewrap or not text:  # a whole report says that all tests were cleared away
                    _end_marked(mark)
        return _outcomes(text, errors, ended, len(tests))


def _outcomes(text: bytes, errors: str, ended: bool, count: int) -> list[ProgramOutcome]:
    """Return the outcomes in a report; without one, every test has the same."""
    try:
        result = [ProgramOutcome(str(kind), str(reason)) for kind, reason in json.loads(text)]
    except (ValueError, TypeError):
        result = []
    if len(result) == count:
        return result
    if not ended:
        return [ProgramOutcome(TIMEOUT, "the sandbox did not end in time")] * count
    said = errors.strip().splitlines()
    return [
        ProgramOutcome(ERROR, said[-1][:200] if said else "what ran the tests was ended before it could report")
    ] * count


def _communicate(
    mode: Confinement, arguments: list[str], job: dict[str, Any], limits: Limits, mark: str
) -> tuple[bytes, str, bool]:
    """Run the command on a job; return its report, the end of its errors, and whether it ended by itself."""
    environment = {**ENVIRONMENT, "HOME": job["scratch"], "TMPDIR": job["scratch"], MARK: mark}
    before: dict[str, Any] = {}
    if mode.user_namespace and mode.uid is not None:
        before = {"user": mode.uid, "group": mode.uid, "extra_groups": []}
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as errors:
        file.write(json.dumps(job).encode("utf-8", "surrogatepass"))
        file.seek(0)
        process = subprocess.Popen(
            arguments, stdin=file, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd="/",
            start_new_session=True, **before,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            text, ended = _read(process.stdout.fileno(), time.monotonic() + limits.program_seconds + GRACE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so that no other group has its number
            process.stdout.close()
            process.wait()
        errors.seek(0)
        return text, errors.read(1 << 16).decode("utf-8", "replace"), ended


def _read(fd: int, deadline: float) -> tuple[bytes, bool]:
    """Read a report to its end; return what there is, and False, when it comes too late or is too long."""
    parts: list[bytes] = []
    size = 0
    while (left := deadline - time.monotonic()) > 0 and size <= MOST_REPORT:
        if select.select([fd], [], [], left)[0]:
            part = os.read(fd, 1 << 16)
            if not part:
                return b"".join(parts), True
            parts.append(part)
            size += len(part)
    return b"".join(parts), False


@contextmanager
def _scratch(mode: Confinement) -> Iterator[str]:
    """The folder that a program may write to; bubblewrap makes its own."""
    if mode.bubblewrap:
        yield SCRATCH
        return
    folder = tempfile.mkdtemp(prefix="specexp-sandbox-")
    try:
        if mode.uid is not None:
            os.chown(folder, mode.uid, mode.uid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cgroup(mode: Confinement, limits: Limits) -> Iterator[str]:
    """A cgroup that counts processes, if the mode has one."""
    if not mode.cgroup:
        yield ""
        return
    folder = Path(tempfile.mkdtemp(prefix="specexp-sandbox-", dir=mode.cgroup))
    try:
        (folder / "pids.max").write_text(str(limits.processes + 1))
        yield str(folder)
    finally:
        for _ in range(100):  # it cannot be removed before its processes are gone
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.01)


def _end_marked(mark: str) -> None:
    """End what has this mark in its environment, and wait until it is gone."""
    wanted = f"{MARK}={mark}".encode()
    end = time.monotonic() + GRACE
    while (left := list(_marked(wanted))) and time.monotonic() < end:
        for number in left:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.001)


def _marked(wanted: bytes) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def _reasons(refused: Sequence[tuple[Confinement, str]], mode: Confinement) -> tuple[str, ...]:
    """Return why bubblewrap is not used, if it is not."""
    if mode.bubblewrap:
        return ()
    tried = [reason for other, reason in refused if other.bubblewrap]
    return (f"bubblewrap does not work here: {tried[0]}" if tried else "bubblewrap is not installed",)
