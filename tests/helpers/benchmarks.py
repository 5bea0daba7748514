"""Benchmarks that take a second."""

from __future__ import annotations

import pytest
from click.testing import Result

from entrypoints.benchmark import command
from helpers.cli_runner import invoke

SMALL = ["--quick", "--limit", "2", "--max-new-tokens", "24", "--repeats", "2", "--gamma", "3,5"]


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specexp.profiling.bandwidth.LARGE", 1 << 20)
    monkeypatch.setattr("specexp.profiling.bandwidth.ONCE", 1 << 20)


def run(*arguments: str) -> Result:
    return invoke(command, *arguments)
