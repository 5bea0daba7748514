"""What runs inside the sandbox: the process that starts each test of a program in a process of its own and reports.

It is given to the interpreter as text (`python -c`), reads one job as JSON from standard input and writes
[[outcome, reason], ...] to standard output. It imports the standard library alone, and nothing of specexp. A program is
executed anew for each test, so that no test sees what another one left; if it cannot even be loaded, every test has
that outcome. A program can forge its own results, as in any harness that runs tests in its process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import sys
import time
import types
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

POLL, SHORT_POLL = 0.01, 0.001  # seconds
LONGEST_REASON = 200  # characters
LOADED, DONE = b"L", b"D"  # written by a test's process: the program is loaded, the test has passed
TOGETHER = "all tests together took more than {0[program_seconds]:g} s"
CLEAN_UP = 2.0  # seconds in which all processes of a test must be gone
SUBREAPER, DEATH_SIGNAL, NO_NEW_PRIVILEGES = 36, 1, 38  # of prctl


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    confine(job)
    end = time.monotonic() + job["limits"]["program_seconds"]
    results: list[list[str]] = []
    stopped: list[str] | None = None
    for test in job["tests"]:
        left = end - time.monotonic()
        if stopped is None and left <= 0:
            stopped = ["timeout", TOGETHER.format(job["limits"])]
        if stopped is not None:
            results.append(stopped)
            continue
        outcome, reason, loaded = run(job, test, min(left, job["limits"]["test_seconds"]))
        results.append([outcome, reason])
        if not loaded and test["kind"] != "input":
            stopped = results[-1]
    sys.stdout.write(json.dumps(results))
    sys.stdout.flush()


def confine(job: dict[str, Any]) -> None:
    """Give up what this process has and its tests must not have: the user id, and in a subprocess other rights."""
    limits = job["limits"]
    if job["cgroup"]:
        with open(os.path.join(job["cgroup"], "cgroup.procs"), "w") as file:
            file.write("0")
    if job["uid"] is not None:
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    if not job["own_pids"]:
        import ctypes  # slow to import, and in bubblewrap not needed

        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(SUBREAPER, 1, 0, 0, 0)
        prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != job["parent"]:
            os._exit(1)  # it ended before it was watched
    os.chdir(job["scratch"])
    limit(resource.RLIMIT_NPROC, job["nproc"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_FSIZE, limits["file_bytes"])


def limit(kind: int, value: int) -> None:
    """Set a resource limit that cannot be raised again, or leave a lower one."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def run(job: dict[str, Any], test: dict[str, Any], seconds: float) -> tuple[str, str, bool]:
    """Run one test in a process of its own; return its outcome, the reason, and whether the program was loaded."""
    printed, printed_end = os.pipe()
    said, said_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child(job, test, printed_end, said_end, seconds)
        finally:
            os._exit(1)
    os.close(printed_end)
    os.close(said_end)
    texts = {printed: b"", said: b""}
    most = {printed: job["limits"]["output_bytes"], said: 4096}
    stop, status = watch(pid, texts, most, time.monotonic() + seconds)
    end_all(pid, job)
    while len(texts[said]) <= most[said] and select.select([said], [], [], 0)[0]:  # where it was stopped meanwhile
        part = os.read(said, most[said])
        texts[said] += part
        if not part:
            break
    for fd in texts:
        os.close(fd)
    return read(job, test, texts[printed], texts[said], stop, status, seconds)


def watch(pid: int, texts: dict[int, bytes], most: dict[int, int], deadline: float) -> tuple[str, Any]:
    """Read what a test writes until it ends, or must be stopped; return why it must, and how it ended."""
    open_fds = list(texts)
    status = None
    while True:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        left = deadline - time.monotonic()
        if ended is None and left <= 0:
            return "timeout", None
        wait = 0.0 if ended is not None else min(left, POLL if open_fds else SHORT_POLL)
        ready = select.select(open_fds, [], [], wait)[0]
        for fd in ready:
            part = os.read(fd, 1 << 16)
            texts[fd] += part
            if not part:
                open_fds.remove(fd)
            if len(texts[fd]) > most[fd]:
                return "output", None
        if ended is not None and not ready:
            status = ended
            return "", status


def read(
    job: dict[str, Any], test: dict[str, Any], printed: bytes, said: bytes, stop: str, status: Any, seconds: float
) -> tuple[str, str, bool]:
    """Return a test's outcome from what its process printed and said, and how it ended."""
    loaded = said.startswith(LOADED)
    said = said.removeprefix(LOADED)
    if stop == "timeout":
        own = seconds >= job["limits"]["test_seconds"]
        return "timeout", f"it took more than {seconds:g} s" if own else TOGETHER.format(job["limits"]), loaded
    if stop == "output":
        return "output", f"it printed more than {job['limits']['output_bytes']} bytes", loaded
    if said and not said.startswith(DONE):
        outcome, _, reason = said.decode("utf-8", "replace").partition(" ")
        if outcome in ("failed", "error", "memory"):
            return outcome, reason, loaded
        return "error", "its report cannot be read", loaded
    if status.si_code != os.CLD_EXITED:
        if status.si_status == signal.SIGXCPU:
            return "timeout", f"it took more than {seconds:.3g} s of CPU time", loaded
        name = signal.Signals(status.si_status).name if status.si_status < signal.SIGRTMIN else status.si_status
        return "error", f"it was ended by {name}", loaded
    if test["kind"] == "input" and status.si_status == 0:
        ok, reason = same_lines(printed.decode("utf-8", "replace"), test["expected"])
        return ("passed", "", True) if ok else ("failed", reason, True)
    if said.startswith(DONE):
        return "passed", "", True
    return "error", f"it ended the process with code {status.si_status}", loaded


def same_lines(text: str, expected: str) -> tuple[bool, str]:
    """Compare what was printed with what is expected, line by line."""
    lines, wanted = ([line.strip() for line in each.strip().split("\n")] for each in (text, expected))
    if len(lines) != len(wanted):
        return False, f"{len(lines)} lines, not {len(wanted)}"
    for number, (line, other) in enumerate(zip(lines, wanted, strict=True), 1):
        if line != other and not same_numbers(line, other):
            return False, f"line {number} is {line[:60]!r}, not {other[:60]!r}"
    return True, ""


def same_numbers(line: str, other: str) -> bool:
    try:
        return [Decimal(part) for part in line.split()] == [Decimal(part) for part in other.split()]
    except (InvalidOperation, ValueError):
        return False


def end_all(pid: int, job: dict[str, Any]) -> None:
    """End a test's process with all that it started, and wait until they are gone."""
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # not yet waited for, so that no other group can have its number
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)  # it may not have made its group yet
    end = time.monotonic() + CLEAN_UP
    while time.monotonic() < end:
        for other in others(job):
            with suppress(OSError):
                os.kill(other, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not others(job):
            return
        time.sleep(SHORT_POLL)


def others(job: dict[str, Any]) -> list[int]:
    """Return the processes that tests left: in pids of its own all but the first and this one, else its children."""
    own, result = os.getpid(), []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (1, own):
            continue
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            # Whoever is not this process's child is waited for by the first one.
            if int(parent) == own or (job["own_pids"] and state not in "ZX"):
                result.append(int(name))
    return result


def child(job: dict[str, Any], test: dict[str, Any], printed: int, said: int, seconds: float) -> NoReturn:
    """Run one test in this process, and say what came of it. Never returns."""
    exit_now, write = os._exit, os.write  # a program may replace them
    os.setsid()
    script = test["kind"] == "input"
    given = os.memfd_create("input")
    os.write(given, test["text"].encode() if script else b"")
    os.lseek(given, 0, os.SEEK_SET)
    said = os.dup2(said, 60)
    errors = os.open(os.devnull, os.O_WRONLY)  # what a program prints there is no part of its output
    for number, fd in enumerate((given, printed, errors)):
        os.dup2(fd, number)
    os.closerange(3, said)
    os.closerange(said + 1, 1024)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    limit(resource.RLIMIT_AS, job["limits"]["memory_bytes"])
    cpu = max(1, int(seconds + 0.999))
    limit(resource.RLIMIT_CPU, cpu)
    random.seed(0)
    name = "__main__" if script else "program"
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["program.py"]
    report = b""
    loaded = False
    try:
        exec(compile(job["program"], "program.py", "exec"), module.__dict__)
        loaded = True
        write(said, LOADED)
        if not script:
            report = check(module, test)
    except MemoryError:
        report = b"memory no memory was left"
    except SystemExit as error:
        if not script:
            report = f"error it ended with SystemExit({error.code})".encode()
    except BaseException as error:
        kind = "failed" if loaded and isinstance(error, AssertionError) else "error"
        report = f"{kind} {words(error)}".encode("utf-8", "replace")
    with suppress(BaseException):
        sys.stdout.flush()
    with suppress(BaseException):
        write(said, report)
    exit_now(0)


def check(module: types.ModuleType, test: dict[str, Any]) -> bytes:
    """Run a test on a loaded program; return what to report. An AssertionError says that it failed."""
    if test["kind"] == "code":
        exec(compile(test["code"], "test.py", "exec"), module.__dict__)
        return DONE
    solution = getattr(module, "Solution", None)
    function = getattr(module if solution is None else solution(), test["function"])
    result = listed(function(*test["arguments"]))
    if result == test["expected"]:
        return DONE
    return f"failed {shortened(repr(result), 60)}, not {shortened(repr(test['expected']), 60)}".encode()


def listed(value: Any) -> Any:
    """Return a value with lists in place of tuples, as JSON has them."""
    return [listed(part) for part in value] if isinstance(value, list | tuple) else value


def words(error: BaseException) -> str:
    """Return an error as one short line."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__, LONGEST_REASON)


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


if __name__ == "__main__":
    main()
