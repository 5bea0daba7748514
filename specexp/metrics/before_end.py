"""What was drafted and accepted up to an output's end: the counts that are shown of one output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def before_end(counts: Mapping[str, Any]) -> tuple[int, int]:
    """Accepted and drafted tokens; for a chain, without those after an EOS or the limit."""
    if counts["trees"] or not counts["drafted_before_end"]:
        return counts["num_accepted"], counts["num_drafted"]
    accepted, drafted = (
        sum(i * rounds for i, rounds in enumerate(counts[f"{name}_before_end"])) for name in ("accepted", "drafted")
    )
    return accepted, drafted


def rounds_by_accepted(counts: Mapping[str, Any]) -> list[int]:
    """Rounds with drafts by how many of them were accepted: of chains, up to the output's end."""
    if counts["trees"] or not counts["drafted_before_end"]:
        return list(counts["accepted_histogram"])
    result = list(counts["accepted_before_end"])
    if result:  # rounds without a draft accept none
        result[0] -= counts["drafted_before_end"][0]
    return result
