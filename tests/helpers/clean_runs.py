"""Certificates of a right server with other seeds: what they find is a false alarm."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

CLEAN_RUNS = 20
STATISTICAL = ("samples", "temperature", "top-p", "top-k", "min-p")


def clean_runs(
    server: str, certify: Callable[[Path, str], dict[str, Any]], known: Collection[str] = ()
) -> list[tuple[int, str]]:
    """What certificates found that is not `known` to be so, and what failed without a name, each with its seed.

    `certify` writes the certificate of a seed to a folder, and returns it. Each run is printed, so that one that is
    cut off leaves the counts so far.
    """
    alarms: list[tuple[int, str]] = []
    began = time.perf_counter()
    for seed in range(CLEAN_RUNS):
        started = time.perf_counter()
        content = certify(Path(f"run{seed}"), str(seed))
        alarms += [(seed, each["name"]) for each in content["findings"] if each["name"] not in known]
        verdicts = {check["name"]: check["verdict"] for check in content["checks"]}
        alarms += [(seed, name) for name in STATISTICAL if verdicts[name] == "failed"]
        passed = sum(verdicts[name] == "passed" for name in STATISTICAL)
        now = time.perf_counter()
        print(
            f"\n{server}: run {seed + 1} of {CLEAN_RUNS}, {now - started:.0f} s; {passed} of {len(STATISTICAL)}"
            f" statistical checks passed in it; {len(alarms)} false alarms so far {alarms or ''}",
            flush=True,
        )
    print(f"{server}: {len(alarms)} false alarms in {CLEAN_RUNS} clean runs, {now - began:.0f} s", flush=True)
    return alarms
