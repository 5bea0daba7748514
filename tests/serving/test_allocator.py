"""The arenas of glibc: one for all threads, unless the environment has decided."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from specexp.serving import allocator

COUNTING = """
import ctypes, re, threading
from specexp.serving.allocator import share_one_arena
assert share_one_arena({environment})
held = []
barrier = threading.Barrier(8)
def allocate():
    barrier.wait()
    held.append([ctypes.create_string_buffer(5000 + i) for i in range(200)])
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_threads_share_one_arena() -> None:
    made = subprocess.run(
        [sys.executable, "-c", COUNTING.format(environment="{}")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert made.stdout.count("<heap nr=") == 1


def test_who_set_the_variable_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        asked.append((name, value))
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert not allocator.share_one_arena({"MALLOC_ARENA_MAX": "4"})
    assert asked == []
    assert allocator.share_one_arena({"MALLOC_ARENA_MAX": ""})
    assert asked == [(-8, 1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not allocator.share_one_arena({}), "musl and macOS have none"


def test_what_was_there_at_the_start_is_not_collected() -> None:
    made = subprocess.run(
        [sys.executable, "-c",
         "import gc; from specexp.serving.allocator import freeze_startup; kept = [[] for _ in range(1000)];"
         " before = len(gc.get_objects()); freeze_startup(); print(before > 1000, gc.get_freeze_count() > 1000,"
         " len(gc.get_objects()) < 100)"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert made.stdout.split() == ["True", "True", "True"]


def test_a_full_collection_after_the_start_does_not_wait_for_a_quarter_of_what_was_there() -> None:
    made = subprocess.run(
        [sys.executable, "-c",
         "import gc; from specexp.serving.allocator import freeze_startup; kept = [[] for _ in range(500_000)];"
         " freeze_startup(); before = gc.get_stats()[2]['collections'];"
         " more = [[] for _ in range(100_000)]; print(gc.get_stats()[2]['collections'] > before)"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert made.stdout.split() == ["True"]
