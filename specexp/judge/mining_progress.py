"""Progress of mining, in tokens of responses that were tried: prompts mined together finish together."""

from __future__ import annotations

from typing import Any


class SearchProgress:
    """Advances a progress bar by tokens. Its total is the length of the started responses, plus their mean length for
    each of the others."""

    def __init__(self, bar: Any, num_prompts: int) -> None:
        self._bar, self._num_prompts = bar, num_prompts
        self._at: dict[int, tuple[int, int]] = {}
        self._known = 0

    def update(self, place: int, tried: int, length: int) -> None:
        """Note that `tried` tokens of this prompt's response of `length` tokens have been tried."""
        before, known = self._at.get(place, (0, 0))
        self._at[place] = tried, length
        self._known += length - known
        mean = self._known / len(self._at)
        self._bar.total = round(self._known + mean * (self._num_prompts - len(self._at)))
        self._bar.update(tried - before)
