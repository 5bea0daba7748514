"""What the catalogue says of a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """Metrics with one definition. `ends` are suffixes of the last name: its interval's bounds, or the p of a test."""

    names: tuple[str, ...]
    definition: str
    unit: str
    better: Literal["higher", "lower", ""]  # "" if neither is
    ends: tuple[str, ...] = ()

    def all_names(self) -> tuple[str, ...]:
        """Return all its names, including those with `ends`."""
        return (*self.names, *(self.names[-1] + end for end in self.ends))
