"""Feeds the same tokens together and one by one."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

Mutable = Any  # a module, class or instance of the package as it is imported now, maybe with a bug in it


def module(name: str) -> Mutable:
    return importlib.import_module(f"specexp.{name}")


def tree(base: int, num: int, seed: int) -> Any:
    """`num` nodes after slot base - 1, each below an earlier one or the root."""
    numbers, paths = random.Random(seed), list[list[int]]()
    for i in range(num):
        parent = i - 1 if numbers.random() < 0.8 else numbers.randrange(-1, i)  # deeper than a window
        paths.append([*(paths[parent] if parent >= 0 else []), i])
    return module("lm.model").Branches(base, [len(path) - 1 for path in paths], paths)


def fed_both_ways(model: Any, rounds: int = 12, tokens: int = 30) -> Iterator[tuple[Any, Any]]:
    """The answers of joint and of single feeds: chains and trees on some of five rows at a time, cut back at random."""
    numbers, feed = random.Random(7), module("lm.model").Feed
    joint, single = model.sessions(5, 8), [model.session() for _ in range(5)]
    for number in range(rounds):
        used = sorted(numbers.sample(range(5), numbers.randrange(1, 6)))
        feeds, expected = [], []
        for row in used:
            length, num, hidden = single[row].length, numbers.randrange(1, tokens), numbers.random() < 0.5
            ids = model.ids([numbers.randrange(3, 90) for _ in range(num)])
            branches = tree(length, num, number) if numbers.random() < 0.4 and length else None
            rows = numbers.randrange(1, num + 1)
            feeds.append(feed(joint[row], ids, rows, hidden, branches))
            expected.append(single[row].feed(ids, rows, hidden, branches))
            if branches is not None:  # the longest path stays
                path = max(branches.ancestors, key=len)
                feeds[-1] = (feeds[-1], min(100, length), [length + i for i in path])
            else:
                feeds[-1] = (feeds[-1], min(100, numbers.randrange(length, length + num + 1)), [])
        yield model.feed([f for f, _, _ in feeds]), expected
        for row, (_, length, slots) in zip(used, feeds, strict=True):
            joint[row].truncate(length, slots)
            single[row].truncate(length, slots)
            assert joint[row].length == single[row].length


def gap(actual: Any, expected: Any) -> float:
    """The greatest difference of any logit or hidden value; infinity where one is missing."""
    worst = 0.0
    for one, other in zip(actual, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
                return float("inf")
            if a is not None:
                worst = max(worst, float(abs(np.asarray(a) - np.asarray(b)).max()))
    return worst
