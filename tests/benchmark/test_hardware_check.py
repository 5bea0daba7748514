"""`speed_check` measures a pair of random models from beginning to end; on a GPU, the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result

from entrypoints.speed_check import command
from helpers.cli_runner import invoke

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> Result:
    return invoke(command, *arguments)


def test_a_tiny_pair_is_measured_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    done = run("--shape", "tiny", "--device", "cpu", "--gamma", "2", "--no-compiled", "--json", str(path))
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    seconds = result["seconds"]
    assert seconds["plain_forward_not_captured"] is None
    assert all(value > 0 for value in seconds.values() if value is not None)
    assert set(result["v"]) == {"1", "2", "3"}
    assert set(result["v_tree"]) == {"17", "65", "129"}
    assert result["share_of_copy"] == pytest.approx(seconds["floor"] / seconds["plain_step"])
    assert "round_over_parts" in done.output
    assert "generate_compiled" not in done.output


def test_wrong_settings_are_reported_together() -> None:
    done = run("--shape", "huge", "--dtype", "int3", "--gamma", "0")
    assert done.exit_code == 2
    assert "shape is 'huge'; known: llama-8b-1b, tiny." in done.output
    assert "dtype is 'int3'" in done.output
    assert "gamma is '0'; it must be a whole number >= 1." in done.output


@pytest.mark.slow
def test_it_does_not_import_mlflow() -> None:
    code = "import sys; from specexp.benchmark import hardware_check; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_an_8b_shape_is_measured_on_a_gpu(tmp_path: Path) -> None:
    """Measured and whole; whether the numbers are good is for a person to read: no test asserts a time."""
    path = tmp_path / "speed.json"
    assert run("--json", str(path)).exit_code == 0
    result = json.loads(path.read_text())
    assert result["models"]["target"]["graphs"] == "captured"
    assert isinstance(result["seconds"]["generate_compiled"], float)
