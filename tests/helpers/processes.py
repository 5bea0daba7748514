"""Evaluations in separate processes, to be stopped at a line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def start(output: str, *more: str) -> subprocess.Popen[str]:
    arguments = ["--limit", "6", "--methods", "baseline,speculative", "--output", output, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "entrypoints.evaluate", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output = process.communicate()[0]
    assert process.returncode == 0, output


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    pytest.fail(f"ended before it had {count} records: {process.communicate()[0]}")
