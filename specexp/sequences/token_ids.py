"""Token ids of prompts, which are encoded when they are asked for; how many each has is in memory, in 4 bytes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from specexp.sequences.lazy import LazySequence, RecentItems

MOST_TOKENS = 1 << 20  # kept, at 4 bytes each: all of a small run


class TokenIds(LazySequence[list[int]]):
    """The ids of `number` prompts, by index. Each is encoded now, too, in order, and `check` may refuse it."""

    def __init__(
        self, encode: Callable[[int], list[int]], number: int,
        check: Callable[[int, list[int]], object] = lambda index, ids: None,
    ) -> None:  # fmt: skip
        self._lengths = array("i")
        recent = RecentItems(lambda index: array("i", encode(index)), len, MOST_TOKENS)
        for index in range(number):
            ids = encode(index)
            check(index, ids)
            self._lengths.append(len(ids))
            recent.put(index, array("i", ids))
        super().__init__(lambda index: recent(index).tolist(), number)

    @property
    def lengths(self) -> LazySequence[int]:
        """How many tokens each prompt has; nothing is encoded."""
        return LazySequence(self._lengths.__getitem__, self._places)


def lengths_of(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return how many tokens each prompt has."""
    return prompts.lengths if isinstance(prompts, TokenIds) else [len(ids) for ids in prompts]


def length_at(prompts: Sequence[Sequence[int]], index: int) -> int:
    """Return how many tokens one prompt has."""
    return prompts.lengths[index] if isinstance(prompts, TokenIds) else len(prompts[index])


def longest_of(prompts: Sequence[Sequence[int]]) -> int:
    """Return the index of the first of the longest prompts."""
    lengths = lengths_of(prompts)
    return max(range(len(lengths)), key=lengths.__getitem__)


def of_median_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return the index of the prompt in the middle if they are sorted by length, equal ones in their order."""
    import numpy as np

    lengths = lengths_of(prompts)
    return int(np.argsort(np.fromiter(lengths, np.int32, len(lengths)), kind="stable")[len(lengths) // 2])
