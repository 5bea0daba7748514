"""Selects the examples that a `limit` takes: a stratified sample of a task with categories, else the first ones.

Rows of such tasks are ordered by category, so the first ones would be of one kind. The sample has a fixed seed of its
own: settings, seeds and resumed runs see the same prompts, and a larger limit keeps those of a smaller one. It begins
with one example of each category and continues in proportion to their sizes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from specexp.tasks.example import Example, Task

SEED = 0


@runtime_checkable
class Sampled(Protocol):
    """An optional extension of a task."""

    def selection(self, limit: int) -> str:
        """Describe how the task takes `limit` of its rows; "" if they are the first ones, or all."""
        ...


def selection(task: Task, limit: int) -> str:
    """Describe how a task takes `limit` of its rows; "" if they are the first ones."""
    return task.selection(limit) if isinstance(task, Sampled) else ""


def chosen(examples: Sequence[Example], limit: int) -> list[Example]:
    """Return `limit` of these examples; if that is all of them, in their own order."""
    if limit >= len(examples) or len(_categories(examples)) < 2:
        return list(examples[:limit])
    return [examples[place] for place in _order([example.category for example in examples])[:limit]]


def words(examples: Sequence[Example], limit: int) -> str:
    """Describe how `chosen` takes `limit` of these examples."""
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
    """Return the indices of all examples, ordered so that every prefix is a stratified sample."""
    rng = random.Random(SEED)
    groups: dict[str, list[int]] = {}
    for place, category in enumerate(categories):
        groups.setdefault(category, []).append(place)
    ranked: list[tuple[float, float, int, int]] = []
    for group in groups.values():
        rng.shuffle(group)
        tie = rng.random()  # orders categories of equal size
        ranked += [((i + 0.5) / len(group) if i else 0.0, tie, i, place) for i, place in enumerate(group)]
    return [place for *_, place in sorted(ranked)]
