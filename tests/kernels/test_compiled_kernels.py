"""Triton compiles every kernel to machine code of GPUs that are not here. What it computes is not seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HELPER = Path(__file__).resolve().parents[1] / "helpers" / "compiled_kernels.py"


def compiled(capability: int, folder: Path, *more: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, str(HELPER), str(capability), *more]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    results: list[dict[str, Any]] = json.loads(out.stdout)
    return results


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.nightly), 90])
def test_kernels_compile_for_real_shapes(capability: int, tmp_path: Path) -> None:
    """Of 8B and 1B models in bfloat16, and of large heads in float32, within the shared memory of such a GPU."""
    results = compiled(capability, tmp_path)
    assert {each["kernel"] for each in results} == {
        "_rms_norm", "_gated", "_rotate_and_store", "_attend_split", "_add_splits", "_multiply", "_add_parts"
    }  # fmt: skip
    most = {80: 163 * 1024, 90: 227 * 1024}[capability]
    assert all(each["bytes"] > 0 for each in results)
    assert not [each for each in results if each["shared"] > most]
    assert_products(results)


@pytest.mark.nightly
@pytest.mark.parametrize("capability", [80, 90])
def test_every_tiling_compiles_for_products_of_8b_and_1b_models(capability: int, tmp_path: Path) -> None:
    results = compiled(capability, tmp_path, "products")
    assert len([each for each in results if each["dtype"] == "*bf16"]) > 20
    assert all(each["shared"] <= 100 << 10 for each in results), "two programs fit a multiprocessor of 227 KiB"
    assert_products(results)


def assert_products(results: list[dict[str, Any]]) -> None:
    """One instruction for any number of rows, though newer GPUs have others; weights are loaded ahead, by 16 bytes."""
    products = [each for each in results if each["kernel"] == "_multiply"]
    assert {each["dtype"] for each in products} == {"*bf16", "*fp32"}
    for each in products:
        one = ["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] if each["dtype"] == "*bf16" else []
        assert each["instructions"] == one
        assert each["loads"] == [["cp.async.cg.shared.global", "0x10"]]
