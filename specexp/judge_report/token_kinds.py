"""The kinds of tokens that a judge lets pass: shares of mismatches accepted, and important, by the draft's token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specexp.metrics.statistics import wilson

KINDS = ("number", "operator", "punctuation", "word", "whitespace", "special")
OPERATORS = frozenset("+-*/=<>^%&|~!×÷·±√∑∏∫≤≥≠≈→∈∧∨¬−")


def kind_of(text: str) -> str:
    """The kind of a token by its text; special tokens decode to nothing. A digit makes a number, a letter a word."""
    bare = text.strip()
    if not bare:
        return "whitespace" if text else "special"
    if any(c.isnumeric() for c in bare):
        return "number"
    if any(c.isalpha() for c in bare):
        return "word"
    return "operator" if any(c in OPERATORS for c in bare) else "punctuation"


@dataclass(frozen=True, slots=True)
class KindShare:
    """Mismatches of one kind: how many there are, the shares of them, and how many are important and pass."""

    kind: str
    mismatches: int
    important: float
    accepted: float
    accepted_interval: tuple[float, float]
    important_accepted: int

    def row(self) -> dict[str, object]:
        """A row of the table."""
        return {
            "kind": self.kind, "mismatches": self.mismatches, "important": f"{self.important:.4f}",
            "accepted": f"{self.accepted:.4f}", "accepted_low": f"{self.accepted_interval[0]:.4f}",
            "accepted_high": f"{self.accepted_interval[1]:.4f}", "important_accepted": self.important_accepted,
        }  # fmt: skip


def shares(texts: Sequence[str], important: np.ndarray, passes: np.ndarray) -> list[KindShare]:
    """The kinds that occur, from each mismatch's draft token, important[N] and passes[N] of bools."""
    kinds = np.array([kind_of(text) for text in texts])
    result = []
    for kind in KINDS:
        inside = kinds == kind
        if count := int(inside.sum()):
            accepted = int(passes[inside].sum())
            result.append(
                KindShare(
                    kind, count, float(important[inside].mean()), accepted / count, wilson(accepted, count),
                    int((passes & important & inside).sum()),
                )
            )  # fmt: skip
    return result
