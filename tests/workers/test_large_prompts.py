"""Prompts of large runs are not in memory together: neither in the command nor in a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
FEW, MANY = 10_000, 200_000
# Bytes a prompt; ids in memory alone took 6,000. A command has the places of records, too, and what sorts them.
MOST = {"worker": 100, "miner": 100, "evaluate": 200, "collect_labels": 250}


def run(folder: Path, number: int, what: str) -> Any:
    command = [sys.executable, "-m", "helpers.large_prompts", str(folder / f"{what}-{number}"), str(number), what]
    return json.loads(subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True).stdout)


@pytest.mark.nightly
@pytest.mark.parametrize("what", MOST)
def test_memory_grows_by_tens_of_bytes_a_prompt(tmp_path: Path, what: str) -> None:
    few, many = run(tmp_path, FEW, what), run(tmp_path, MANY, what)
    assert (many["megabytes"] - few["megabytes"]) * 2**20 <= MOST[what] * (MANY - FEW)
    assert many["units"] == (MANY if what in ("evaluate", "collect_labels") else few["units"])


@pytest.mark.slow
def test_the_command_and_its_labels_see_the_same_prompts(tmp_path: Path) -> None:
    decoded, mined = run(tmp_path, 30, "evaluate"), run(tmp_path, 30, "collect_labels")
    assert decoded == {**mined, "megabytes": decoded["megabytes"]}
    assert decoded["units"] == 30
