"""Checks the counts of a traced output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

DRAFTED = ("accepted", "judged", "looked_up", "suffix", "tree")


def check_counts(counts: Mapping[str, int], cut: Mapping[str, int], record: Mapping[str, Any], bonus: bool) -> None:
    """Check tokens by origin, shown and cut, against the counts of the record that they must add up to."""
    both = Counter(counts) + Counter(cut)
    own = sum(both[origin] for origin in ("corrected", "bonus", "target", "draft"))
    assert sum(counts.values()) == len(record["token_ids"])
    assert sum(cut.values()) == record["num_cut"]
    assert sum(both[origin] for origin in DRAFTED) == record["num_accepted"]
    assert both["judged"] == record["num_judged"]
    assert own == record["num_rounds"] - (0 if bonus else record["num_full"])
    if not record["trees"]:
        assert both["bonus"] == (record["num_full"] if bonus else 0)
        short = sum(record["accepted_histogram"]) - record["num_full"] - both["target"]
        assert both["corrected"] == (short if record["accepted_histogram"] else 0)
