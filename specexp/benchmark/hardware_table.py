"""The table of speed_check: what was measured, next to what is wanted of a GPU, one quantity a line.

A cell is empty where the quantity could not be measured, and the line ends with the reason. Wanted values are ratios,
which any card and any shape can be held to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from specexp.profiling.call_costs import TreeRound

ROWS = 16  # prompts that are decoded together


@dataclass(frozen=True, slots=True)
class CheckedTree:
    """A tree that SpecExec grows: nodes kept, levels, and nodes that a draft forward expands."""

    nodes: int
    depth: int
    branches: int

    @property
    def round(self) -> TreeRound:
        """The calls of one of its rounds."""
        return TreeRound(self.nodes, self.depth, self.branches)

    @property
    def name(self) -> str:
        return f"tree round, {self.nodes} nodes, depth {self.depth}"


TREES = (CheckedTree(128, 8, 16), CheckedTree(256, 16, 16))
NOT_FOR_RATIO = "one of its parts was not measured"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One line: a value in `unit` ("ms", or "" for a ratio), and what is wanted: at least, or at most so much."""

    name: str
    measured: float | None
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    reason: str = ""  # why it was not measured

    def as_json(self) -> dict[str, Any]:
        wanted = {"at_least": self.at_least, "at_most": self.at_most}
        return {
            "name": self.name,
            "measured": self.measured,
            "unit": self.unit,
            "wanted": next(({key: value} for key, value in wanted.items() if value is not None), None),
            "reason": self.reason,
        }

    def line(self) -> str:
        """The quantity as it is printed."""
        wanted = f">= {self.at_least}" if self.at_least is not None else ""
        wanted = f"<= {self.at_most}" if self.at_most is not None else wanted
        shown = "" if self.measured is None else f"{self.measured:.3f}{' ' + self.unit if self.unit else ''}"
        return f"{self.name:44} {shown:>14} {wanted:>9}  {self.reason}".rstrip()


def ratio(value: float | None, by: float | None) -> float | None:
    """`value` / `by`, None if one of them is."""
    return None if value is None or not by else value / by


def quantities(
    numbers: Mapping[str, float | None], failed: Mapping[str, str], gamma: int, prompt: int = 1024
) -> list[Quantity]:
    """The table, from seconds and ratios by name (see `hardware_check.measure`) and reasons by the same names."""

    def line(
        name: str,
        key: str,
        by: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        ms: bool = False,
    ) -> Quantity:
        value = ratio(numbers.get(key), numbers.get(by)) if by else numbers.get(key)
        reason = "" if value is not None else failed.get(key) or failed.get(by) or failed.get("all") or NOT_FOR_RATIO
        if ms and value is not None:
            value *= 1e3
        return Quantity(name, value, "ms" if ms else "", at_least, at_most, reason)

    result = [
        line("plain step of the target", "plain_step", ms=True),
        line("  share of a copy's bandwidth", "target_bound", "plain_step", at_least=0.85),
        line("draft step", "draft_step", ms=True),
        line("  share of a copy's bandwidth", "draft_bound", "draft_step", at_least=0.70),
        line("v(5): 5 positions / a plain step", "target_5", "plain_forward", at_most=1.05),
        line("v(8): 8 positions / a plain step", "target_8", "plain_forward", at_most=1.05),
        line(f"chain round, gamma {gamma}", "round", ms=True),
        line("  / its parts", "round", "round_parts", at_most=1.03),
    ]
    for tree in TREES:
        result += [
            line(tree.name, f"tree_{tree.nodes}", ms=True),
            line("  / its forwards", f"tree_{tree.nodes}", f"tree_{tree.nodes}_parts", at_most=1.10),
        ]
    return [
        *result,
        line(f"{ROWS} prompts together: plain step", "plain_together", ms=True),
        line("  / one prompt's step", "plain_together", "plain_step", at_most=1.25),
        line(f"{ROWS} prompts together: chain round", "round_together", ms=True),
        line("  / one prompt's round", "round_together", "round", at_most=1.4),
        line("invariant numerics: plain step / fastest", "invariant_step", at_most=1.04),
        line(f"  tree of {TREES[0].nodes} nodes / fastest", "invariant_tree"),
        line(f"  {ROWS} prompts together, plain step / fastest", "invariant_together"),
        line(f"  prompt of {prompt:,} tokens / fastest", "invariant_prompt"),
        line("generate(), a token", "generate", ms=True),
        line("generate() compiled, a token", "generate_compiled", ms=True),
    ]


def text(head: str, lines: Iterable[str]) -> str:
    """The table as it is printed; `head` names the device."""
    return "\n".join([head, f"{'':44} {'measured':>14} {'wanted':>9}", *lines])
