"""The reference for trees in tests: a slow search that shares no code with decoding."""

from __future__ import annotations

import math

from specexp.certify.reference_distribution import warp
from specexp.lm.toy import ToyModel


def tree(
    model: ToyModel, ids: list[int], depth: int, budget: int, branches: int, width: int,
    threshold: float = 0.0, floor: float = -math.inf,
) -> set[tuple[int, ...]]:  # fmt: skip
    """Paths of the tree that a draft grows after `ids`, each scored by a separate forward."""
    scores: dict[tuple[int, ...], tuple[float, int]] = {}
    expanded: set[tuple[int, ...]] = set()
    for _ in range(depth):
        kept = sorted(scores, key=lambda path: (-scores[path][0], scores[path][1]))[:budget]
        full = len(kept) == budget
        todo = [p for p in kept if p not in expanded and (not full or scores[p][0] > scores[kept[-1]][0])]
        for path in todo[:branches] if expanded else [()]:
            expanded.add(path)
            logits, _ = model.session().feed(model.ids([*ids, *path]), rows=1)
            q = warp(logits[0].tolist(), 1.0)
            for token in sorted(range(len(q)), key=lambda i: (-q[i], i))[:width]:
                score = math.log(q[token]) + (scores[path][0] if path else 0.0)
                if q[token] >= threshold * max(q) and score >= floor:
                    scores[*path, token] = (score, len(scores))
    return set(sorted(scores, key=lambda path: (-scores[path][0], scores[path][1]))[:budget])
