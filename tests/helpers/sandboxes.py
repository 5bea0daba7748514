"""Sandboxes of one kind for tests, with small limits, and what they left running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specexp.errors import TaskError
from specexp.sandbox.job import MIB, Limits
from specexp.sandbox.modes import MARK, modes
from specexp.sandbox.sandbox import Sandbox

SMALL = Limits(
    test_seconds=0.8, program_seconds=4, memory_bytes=256 * MIB, processes=8, file_bytes=2 * MIB, scratch_bytes=4 * MIB,
    output_bytes=1 << 14,
)  # fmt: skip


def sandbox_of(kind: str, limits: Limits = SMALL) -> Sandbox:
    """A sandbox in the best mode of this kind that works here; the test is skipped if none does."""
    result = Sandbox(limits, [mode for mode in modes() if mode.name == kind])
    try:
        assert result.protection.name == kind
    except TaskError as error:
        pytest.skip(str(error))
    return result


def left_running() -> list[str]:
    """The processes that sandboxes of this process have left."""
    mark = f"{MARK}={os.getpid()}.".encode()
    result = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                result.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return result
