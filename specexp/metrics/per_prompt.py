"""Sums by prompt in arrays of a few bytes a prompt: a million prompts are summed up without holding their records."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from specexp.metrics.statistics import Timed
from specexp.sequences.names import NameNumbers

LARGE = 20_000  # prompts whose ids are in memory
SECONDS, COUNTS = "d", "BHIQ"  # type codes of `array`; counts take the first one in which the largest of them fits

Array = np.ndarray[Any, Any]


class PromptNumbers:
    """Numbers prompts from 0 in the order in which they come; several sums may share one numbering.

    `known` is a numbering of at least these prompts, which is used if it has more than `LARGE`.
    """

    def __init__(self, known: NameNumbers | None = None) -> None:
        self._few: dict[str, int] = {}
        self._many = known if known is not None and len(known) > LARGE else None

    def __len__(self) -> int:
        return len(self._few if self._many is None else self._many)

    def number(self, prompt_id: str) -> int:
        """Return a prompt's number."""
        if self._many is not None:
            return self._many.number(prompt_id)
        result = self._few.setdefault(prompt_id, len(self._few))
        if len(self._few) > LARGE:
            self._many = NameNumbers()
            for name in self._few:
                self._many.number(name)
            self._few.clear()
        return result

    def order(self) -> Array:
        """Return the numbers in the order in which a resample counts prompts: by id, or of more than `LARGE` prompts in
        the order in which they came. A resample draws places, so that any fixed order does."""
        if self._many is not None:
            return np.arange(len(self._many))
        return np.array([self._few[name] for name in sorted(self._few)], dtype=np.int64)


class PromptSums:
    """One sum for each prompt, of `SECONDS` or of `COUNTS`, which are integers >= 0."""

    def __init__(self, kinds: str) -> None:
        self._kinds = kinds
        self._values: array[Any] = array(kinds[0])

    def add(self, prompt: int, value: float) -> None:
        if prompt >= len(self._values):
            self._values.extend([0] * (prompt + 1 - len(self._values)))
        while True:
            try:
                self._values[prompt] += value
                return
            except OverflowError:
                wider = self._kinds[self._kinds.index(self._values.typecode) + 1 :]
                if not wider:
                    raise
                self._values = array(wider[0], self._values)

    def values(self, size: int) -> Array:
        """Return the sums of the prompts 0 to size - 1."""
        result = np.zeros(size, self._values.typecode)
        result[: len(self._values)] = np.frombuffer(self._values, self._values.typecode)
        return result


class PromptTimes:
    """Each prompt's tokens, and its seconds (or its rounds)."""

    def __init__(self, prompts: PromptNumbers, *kinds: str) -> None:
        self._prompts = prompts
        self._tokens, self._num_records = PromptSums(COUNTS), PromptSums(COUNTS)
        self._columns = [PromptSums(kind) for kind in kinds]

    def add(self, prompt: int, tokens: int, values: Sequence[float]) -> None:
        """Add one record's tokens, and a value for each column."""
        self._num_records.add(prompt, 1)
        self._tokens.add(prompt, tokens)
        for column, value in zip(self._columns, values, strict=True):
            column.add(prompt, value)

    def more(self, prompt: int, value: float) -> None:
        """Add to a prompt's first column."""
        self._columns[0].add(prompt, value)

    def timed(self, column: int = 0) -> Timed:
        """Return the tokens, and the sums of one column, of all prompts that have records."""
        size, order = len(self._prompts), self._prompts.order()
        order = order[self._num_records.values(size)[order] > 0]
        values = self._columns[column].values(size)[order].astype(float, copy=False)
        return Timed(self._tokens.values(size)[order], values[:, None])
