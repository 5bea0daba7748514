"""A text in the tokens of a draft that has another tokenizer, which is brought into them part by part.

Between rounds only the end of a text changes: the parts before the last one are translated once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol


class Translation(Protocol):
    """Two vocabularies. It decides nothing by what it saw before: the same ids give the same ids."""

    @property
    def common(self) -> Sequence[int]:
        """For each of the target's ids the draft's id of the same token; -1 where there is none."""
        ...

    @property
    def tokenizers(self) -> Mapping[str, Any]:
        """Both tokenizers, by the names under which transformers' generate() takes them."""
        ...

    def own(self, ids: Sequence[int]) -> list[int]:
        """A sequence of the target's ids in the draft's."""
        ...

    def own_parts(self, ids: Sequence[int], start: int) -> Iterator[tuple[int, Sequence[int]]]:
        """What follows `start`, where a part begins, by parts: how many ids, and these in the draft's. More ids after
        them change the last part alone."""
        ...

    def begun(self, own: list[int]) -> list[int]:
        """All parts' ids with the special ones that the draft has before every text."""
        ...

    def continued(self, ids: Sequence[int], own: Sequence[int]) -> list[int]:
        """The target's whole tokens for the text of the draft's ids `own`, which follows the target's `ids`: without
        the last one, whose text may be the beginning of a longer token, unless the draft ends there."""
        ...

    def ends(self, own: int) -> bool:
        """True if the draft ends the text with this id."""
        ...


class SettledText:
    """The beginning of a text in the draft's tokens, in parts that more text does not change."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, int]] = [(0, 0)]  # numbers of ids, the target's and the draft's, up to each part
        self._own: list[int] = []

    @property
    def num_ids(self) -> int:
        """How many of the target's ids they are."""
        return self._ends[-1][0]

    def cut(self, count: int) -> None:
        """Keep the parts within the first `count` ids."""
        while self.num_ids > count:
            self._ends.pop()
        del self._own[self._ends[-1][1] :]

    def read(self, ids: Sequence[int], translation: Translation) -> list[int]:
        """All of a text, which begins with these parts, in the draft's tokens; its parts but the last are added."""
        last: Sequence[int] = ()
        start = end = self.num_ids
        for num, part in translation.own_parts(ids, start):
            if end > start:
                self._own += last
                self._ends.append((end, len(self._own)))
            end, last = end + num, part
        return translation.begun([*self._own, *last])


def common_prefix(one: list[int], other: list[int]) -> int:
    """The length of the longest common prefix. Whole halves are compared: texts mostly differ at their ends."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low
