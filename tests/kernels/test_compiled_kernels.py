"""Triton compiles every kernel to machine code of GPUs that are not here. What it computes is not seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPER = Path(__file__).resolve().parents[1] / "helpers" / "compiled_kernels.py"


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.nightly), 90])
def test_kernels_compile_for_real_shapes(capability: int, tmp_path: Path) -> None:
    """Of 8B and 1B models in bfloat16, and of large heads in float32, within the shared memory of such a GPU."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    out = subprocess.run(
        [sys.executable, str(HELPER), str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr[-2000:]
    compiled = json.loads(out.stdout)
    assert {each["kernel"] for each in compiled} == {
        "_rms_norm", "_gated", "_rotate_and_store", "_attend_split", "_add_splits"
    }  # fmt: skip
    most = {80: 163 * 1024, 90: 227 * 1024}[capability]
    assert all(each["bytes"] > 0 for each in compiled)
    assert not [each for each in compiled if each["shared"] > most]
