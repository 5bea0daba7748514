"""What the tests compare with: the target's own distribution, in plain Python, sharing no line with decoding."""

from __future__ import annotations

import itertools
import math

from specexp.lm.toy import ToyModel


def warp(logits: list[float], temperature: float, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """Temperature, top-k, top-p, one row, the slow way."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if temperature == 0:
        return [float(i == ranked[0]) for i in range(len(logits))]
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    keep = ranked[:top_k] if top_k else ranked
    mass = sum(weights[i] for i in keep)
    nucleus, reached = [], 0.0
    for i in keep:
        if reached >= top_p:
            break
        nucleus.append(i)
        reached += weights[i] / mass
    total = sum(weights[i] for i in nucleus)
    return [weights[i] / total if i in nucleus else 0.0 for i in range(len(logits))]


def sequence_distribution(
    model: ToyModel, prompt: list[int], length: int, eos: int | None, **sampling: float
) -> dict[tuple[int, ...], float]:
    """Probability of every output of `model` on `prompt`: up to `length` tokens, or to the EOS."""
    found: dict[tuple[int, ...], float] = {}
    for output in itertools.product(range(model.vocab_size), repeat=length):
        if eos in output:
            output = output[: output.index(eos) + 1]
        if output in found:
            continue
        logits, _ = model.session().feed(model.ids([*prompt, *output[:-1]]), rows=len(output))
        prob = 1.0
        for row, token in zip(logits.tolist(), output, strict=True):
            prob *= warp(row, **sampling)[token]  # type: ignore[arg-type]
        found[output] = prob
    return {output: prob for output, prob in found.items() if prob > 0}


def tree(
    model: ToyModel, ids: list[int], depth: int, budget: int, branches: int, width: int,
    threshold: float = 0.0, floor: float = -math.inf,
) -> set[tuple[int, ...]]:  # fmt: skip
    """Paths of the tree that a draft grows behind `ids`, each scored by a forward of its own."""
    found: dict[tuple[int, ...], tuple[float, int]] = {}
    expanded: set[tuple[int, ...]] = set()
    for _ in range(depth):
        kept = sorted(found, key=lambda path: (-found[path][0], found[path][1]))[:budget]
        full = len(kept) == budget
        todo = [p for p in kept if p not in expanded and (not full or found[p][0] > found[kept[-1]][0])]
        for path in todo[:branches] if expanded else [()]:
            expanded.add(path)
            logits, _ = model.session().feed(model.ids([*ids, *path]), rows=1)
            q = warp(logits[0].tolist(), 1.0)
            for token in sorted(range(len(q)), key=lambda i: (-q[i], i))[:width]:
                score = math.log(q[token]) + (found[path][0] if path else 0.0)
                if q[token] >= threshold * max(q) and score >= floor:
                    found[*path, token] = (score, len(found))
    return set(sorted(found, key=lambda path: (-found[path][0], found[path][1]))[:budget])


def gap(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    """The largest difference of two distributions at any output."""
    return max(abs(one.get(k, 0.0) - other.get(k, 0.0)) for k in one.keys() | other.keys())
