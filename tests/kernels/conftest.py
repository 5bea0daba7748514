"""These tests run Triton's interpreter: `make test-kernels`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specexp.installed import is_installed

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "Triton is not installed: make test-kernels" if not is_installed("triton") else ""
    if not reason and os.environ.get("TRITON_INTERPRET") != "1":
        reason = "TRITON_INTERPRET is not 1: make test-kernels"
    for item in items:
        if reason and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _rows_of_a_dot_are_summed_alike() -> Iterator[None]:
    """As a GPU's instruction sums them. The interpreter takes NumPy's product, in which the order of a row's sums may
    depend on its place, by CPU: OpenBLAS computes the rows of a block of 16 in groups of 6 on some."""
    if not is_installed("triton"):
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    whole = InterpreterBuilder.create_dot

    def by_rows(self: Any, x: Any, y: Any, total: Any, *more: Any) -> Any:
        one, added = (TensorHandle(each.data[:, None], each.dtype) for each in (x, total))
        result = whole(self, one, y, added, *more)
        return TensorHandle(result.data[:, 0], result.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", by_rows)
        yield
