"""Selects the examples that a `limit` takes: a stratified sample of a task with categories, else the first ones.

Rows of such tasks are ordered by category, so the first ones would be of one kind. The sample has a fixed seed of its
own: settings, seeds and resumed runs see the same prompts, and a larger limit keeps those of a smaller one. It begins
with one example of each category and continues in proportion to their sizes.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from specexp.sequences.lazy import at
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


def chosen(examples: Sequence[Example], limit: int) -> Sequence[Example]:
    """Return `limit` of these examples; if that is all of them, in their own order."""
    if limit >= len(examples) or len(_categories(examples)) < 2:
        return examples[:limit]
    return at(examples, _order(examples)[:limit])


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


def _order(examples: Sequence[Example]) -> array[int]:
    """Return the indices of all examples, ordered so that every prefix is a stratified sample."""
    import numpy as np

    numbers: dict[str, int] = {}  # of categories, in the order in which they come
    numbered = (numbers.setdefault(example.category, len(numbers)) for example in examples)
    column = np.fromiter(numbered, np.int32, len(examples))
    by_category = np.argsort(column, kind="stable")
    rng = random.Random(SEED)
    rank = np.empty(len(column), np.int64)  # in its category, after the shuffle
    share, tie = np.empty(len(column)), np.empty(len(column))
    start = 0
    for size in np.bincount(column).tolist():
        group = array("q", by_category[start : start + size].tolist())
        rng.shuffle(group)
        places = np.frombuffer(group, np.int64)
        rank[places] = np.arange(size)
        share[places] = np.where(rank[places] > 0, (rank[places] + 0.5) / size, 0.0)
        tie[places] = rng.random()  # orders categories of equal size
        start += size
    return array("q", np.lexsort((rank, tie, share)).tobytes())
