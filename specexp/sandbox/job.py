"""What a sandbox runs and what comes of it: limits, the tests of a program, and the outcome of each test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

PASSED, FAILED, ERROR, TIMEOUT, MEMORY, OUTPUT = "passed", "failed", "error", "timeout", "memory", "output"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program. `program_seconds` is for all of its tests together; CPU time has the same limits as time.

    `memory_bytes` is address space, for each of at most `processes` processes (threads count, too). `file_bytes` is for
    one file, `scratch_bytes` for the folder that a program writes to (bubblewrap alone), `output_bytes` for what one
    test prints.
    """

    test_seconds: float = 5.0
    program_seconds: float = 30.0
    memory_bytes: int = 512 * MIB
    processes: int = 16
    file_bytes: int = 16 * MIB
    scratch_bytes: int = 32 * MIB
    output_bytes: int = MIB // 4


@dataclass(frozen=True, slots=True)
class CodeTest:
    """Code that is run in the program's namespace; an AssertionError says that the test failed."""

    code: str
    kind: Literal["code"] = "code"


@dataclass(frozen=True, slots=True)
class CallTest:
    """A call of a function of the program, or of a method of its class `Solution`; `expected` is its result, in JSON
    values (a tuple counts as a list)."""

    function: str
    arguments: tuple[Any, ...]
    expected: Any
    kind: Literal["call"] = "call"


@dataclass(frozen=True, slots=True)
class InputTest:
    """A run of the program as a script; lines are compared without the spaces around them, numbers by value."""

    text: str
    expected: str
    kind: Literal["input"] = "input"


ProgramTest = CodeTest | CallTest | InputTest


@dataclass(frozen=True, slots=True)
class ProgramOutcome:
    """What came of one test: passed, failed (a wrong result), error, timeout, memory or output, with a short reason."""

    kind: str
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.kind == PASSED


def job_of(program: str, tests: tuple[ProgramTest, ...], limits: Limits) -> dict[str, Any]:
    """Return what `inside.py` reads, as JSON values."""
    return {"program": program, "tests": [asdict(test) for test in tests], "limits": asdict(limits)}
