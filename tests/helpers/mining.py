"""Miners on toy models, and comparisons of their results with those of the reference procedure."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from helpers.reference_miner import Reference
from specexp.answers.comparators import CANONICAL
from specexp.judge.features import PARTS

LIMIT = 24
RULES: dict[str, Callable[[list[int]], str | None]] = {
    "the last token": lambda ids: str(ids[-1]) if ids else None,
    "the sum modulo 3": lambda ids: str(sum(ids) % 3),
    "sometimes none": lambda ids: None if sum(ids) % 4 == 0 else str(sum(ids) % 2),
    "always the same": lambda ids: "yes",
    "every token": lambda ids: " ".join(map(str, ids)),
}


@dataclass(frozen=True)
class Reads:
    """A task whose answer is a function of the ids, which ToyText writes as numbers."""

    rule: str
    name: str = "reads"
    comparator: Any = CANONICAL

    def examples(self, limit: int) -> list[Any]:
        return []

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return RULES[self.rule]([int(number) for number in text.split()])

    def dataset(self) -> Any:
        return None


def toy_examples(count: int) -> list[Any]:
    example = importlib.import_module("specexp.tasks.example").Example
    rng = random.Random(0)
    texts = ["".join(rng.choice("0123456789ab") for _ in range(rng.randrange(1, 7))) for _ in range(count)]
    return [example(f"p{i}", (text,), "gold") for i, text in enumerate(texts)]


def miner(pair: Any, task: Any, limit: int = LIMIT) -> Any:
    return importlib.import_module("specexp.judge.mining").Miner(pair, task, limit)


def disagreements(mined: Any, slow: Reference, tolerance: float) -> Iterator[str]:
    """Where the miner and the literal procedure differ."""
    if mined.status != slow.status:
        yield f"{mined.status} instead of {slow.status}"
    elif mined.response != slow.response:
        yield f"the response ends as {mined.response}, not {slow.response}"
    if [asdict(label) for label in mined.labels] != slow.labels:
        yield "labels"
    if slow.labels and set(mined.features) != set(PARTS):
        yield f"features of {set(mined.features)}"
    for part, rows in slow.features.items():
        if mined.features[part].shape != np.stack(rows).shape:
            yield f"{part}: {len(mined.features[part])} rows, not {len(rows)}"
        elif not np.abs(mined.features[part] - np.stack(rows)).max() <= tolerance:
            yield f"{part} differ"
    counted = tuple(mined.counts.get(f"slow_target_{what}", 0) for what in ("calls", "positions"))
    if counted != (slow.num_calls, slow.num_positions):
        yield f"the literal way costs {(slow.num_calls, slow.num_positions)}, not {counted}"
