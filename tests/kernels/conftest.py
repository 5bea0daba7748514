"""These tests run Triton's interpreter: `make test-kernels`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "Triton is not installed: make test-kernels" if find_spec("triton") is None else ""
    if not reason and os.environ.get("TRITON_INTERPRET") != "1":
        reason = "TRITON_INTERPRET is not 1: make test-kernels"
    for item in items:
        if reason and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))
