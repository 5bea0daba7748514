"""What `guarded` sets up around every entry point."""

from __future__ import annotations

import os
import signal

import pytest

from specexp import command_line as common


@pytest.mark.parametrize(
    "given,spins",
    [({}, common.SPIN), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "a count", "a policy"],
)
def test_threads_spin_briefly_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen = []
    try:
        common.guarded(lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [spins]
