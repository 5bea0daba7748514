"""Which examples a `limit` takes: of a task with categories some of each, of any other the first ones.

Rows of such tasks come category by category, so that the first ones would be of one kind. The sample is drawn by a
fixed seed, not by a run's: settings, seeds and resumed runs see the same prompts, and a larger limit keeps those of a
smaller one. It begins with one example of each category and goes on in proportion to their sizes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from specexp.tasks.example import Example, Task

SEED = 0


@runtime_checkable
class Sampled(Protocol):
    """What a task may offer besides."""

    def selection(self, limit: int) -> str:
        """How it takes `limit` of its rows, in words; "" where they are the first ones, or all."""
        ...


def selection(task: Task, limit: int) -> str:
    """How a task takes `limit` of its rows, if not the first ones."""
    return task.selection(limit) if isinstance(task, Sampled) else ""


def chosen(examples: Sequence[Example], limit: int) -> list[Example]:
    """`limit` of these examples; all of them in their own order, if that is all."""
    if limit >= len(examples) or len(_categories(examples)) < 2:
        return list(examples[:limit])
    return [examples[place] for place in _order([example.category for example in examples])[:limit]]


def words(examples: Sequence[Example], limit: int) -> str:
    """How `chosen` takes `limit` of these."""
    num = len(_categories(examples))
    if limit >= len(examples) or num < 2:
        return ""
    return (
        f"{limit} of {len(examples)}, a stratified sample of {num} categories: one of each, then in proportion to their"
        f" sizes (seed {SEED})"
    )


def _categories(examples: Sequence[Example]) -> set[str]:
    return {example.category for example in examples}


def _order(categories: Sequence[str]) -> list[int]:
    """Places of all examples, so that the first ones of any number are a stratified sample."""
    rng = random.Random(SEED)
    groups: dict[str, list[int]] = {}
    for place, category in enumerate(categories):
        groups.setdefault(category, []).append(place)
    ranked: list[tuple[float, float, int, int]] = []
    for group in groups.values():
        rng.shuffle(group)
        tie = rng.random()  # categories of one size take turns in an order of their own
        ranked += [((i + 0.5) / len(group) if i else 0.0, tie, i, place) for i, place in enumerate(group)]
    return [place for *_, place in sorted(ranked)]
