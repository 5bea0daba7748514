"""What training takes of memory where features do not fit in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROWS, FEATURES = 100_000, 205  # and their features in MB


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_features_beyond_memory_are_trained_on_in_files(tmp_path: Path, kind: str) -> None:
    """Held, the splits' features are there as they are and standardised; in files they are not: the same judge.

    What is counted is memory that no file backs: pages of mapped files are given up where memory is short.
    """

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "helpers.large_training", *arguments]
        return subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True).stdout

    run("write", str(tmp_path / "set"), str(ROWS))
    done = {
        name: json.loads(run(kind, str(tmp_path / "set"), str(most)))
        for name, most in (("held", 2**40), ("mapped", 2**20))
    }
    assert done["mapped"]["roc_auc"] == done["held"]["roc_auc"] > 0.9
    assert done["mapped"]["megabytes"] <= done["held"]["megabytes"] - FEATURES / 2
