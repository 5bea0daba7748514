"""Plans runs of many sizes from the durations of some prompts: a table of what they take, and why not less.

More prompts than there are durations are drawn from them with replacement. A run of more units than `MOST_UNITS` is
simulated up to there, and its middle prolonged at the rate that it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specexp.scale.simulation import Cluster, SimulatedRun, prolonged, simulate

MOST_UNITS = 50_000
UNITS_PER_WORKER = 50  # that are simulated at least, where there are as many


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of the table, and the same one without what costs it time."""

    num_units: int
    outcome: SimulatedRun
    without_deaths: SimulatedRun
    without_loading: SimulatedRun  # and without deaths
    in_order: SimulatedRun  # of the units, whose lengths are not known


def units(durations: Sequence[float], number: int, seed: int) -> list[float]:
    """Return the durations of so many units: the first of those given, or draws from them if there are fewer."""
    if number <= len(durations):
        return list(durations[:number])
    drawn = np.random.default_rng(seed).choice(np.asarray(durations, dtype=float), size=number)
    return [float(each) for each in drawn]


def plan(durations: Sequence[float], number: int, cluster: Cluster) -> SimulatedRun:
    """Return what `number` units take."""
    simulated = min(number, max(MOST_UNITS, UNITS_PER_WORKER * cluster.num_workers))
    result = simulate(units(durations, simulated, cluster.seed), cluster)
    return result if simulated == number else prolonged(result, number, simulated)


def row(durations: Sequence[float], number: int, cluster: Cluster) -> PlannedRun:
    """Return a line of the table."""
    undying = replace(cluster, deaths_per_hour=0.0)
    return PlannedRun(
        number,
        plan(durations, number, cluster),
        plan(durations, number, undying),
        plan(durations, number, replace(undying, load_seconds=0.0)),
        plan(durations, number, replace(cluster, longest_first=not cluster.longest_first)),
    )


HEADS = ("prompts", "workers", "time", "efficiency", "without deaths", "without loading", "other order", "deaths")


def cells(row: PlannedRun) -> list[str]:
    """Return a row's cells as text."""
    shares = (row.outcome, row.without_deaths, row.without_loading, row.in_order)
    return [
        f"{row.num_units:,}", f"{row.outcome.num_workers:,}", duration(row.outcome.makespan),
        *(f"{100 * each.efficiency:.1f} %" for each in shares), f"{row.outcome.num_deaths:,}",
    ]  # fmt: skip


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which it has at least two."""
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table of planned runs."""
    return aligned([HEADS, *rows])


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines of cells, with all cells of a column aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        yield "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
