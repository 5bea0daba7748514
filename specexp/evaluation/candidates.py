"""The settings that advice weighs, what they are of, and which are run before anything is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specexp.evaluation.methods import LOSSLESS
from specexp.evaluation.runner import Setting

# How many settings of a method are run at most for what its rounds take beside their calls, and for a tree's counts.
PROBED = {"speculative": 3, "autojudge": 2, "specexec": 5}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting that may be recommended. `kind` is its method, with the threshold of a lossy one."""

    setting: Setting

    @property
    def label(self) -> str:
        return self.setting.config.label

    @property
    def method(self) -> str:
        return self.setting.config.method

    @property
    def kind(self) -> str:
        threshold = self.setting.config.threshold
        if self.lossless:
            return self.method
        return f"{self.method}, {'its own threshold' if threshold is None else f'threshold {threshold:g}'}"

    @property
    def size(self) -> int:
        """The draft length, or the budget of a tree."""
        tree = self.setting.config.tree
        return tree.tree_budget if tree else self.setting.config.gamma

    @property
    def lossless(self) -> bool:
        return self.method in LOSSLESS


def by_kind(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """In order of size."""
    found: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: c.size):
        found.setdefault(candidate.kind, []).append(candidate)
    return found


def to_probe(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The ends, and some between, of each method's lengths or budgets; one threshold stands for all."""
    found: list[Candidate] = []
    for method, most in PROBED.items():
        kinds = list(by_kind([c for c in candidates if c.method == method]).values())
        if kinds:
            found += spread(kinds[len(kinds) // 2], most)
    return found


def spread(items: Sequence[Candidate], most: int) -> list[Candidate]:
    """`most` of them at most, evenly, both ends included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
