"""Finds continuations: prompt lookup's search in the sequence itself, and a search in a text that is being changed."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 12  # how far back an agreement is looked at
TRUST, AFTER_SWAP = 2, 3  # tokens offered for each one that agrees, and after a replaced one


def continuation(ids: Sequence[int], text: Sequence[int], most: int) -> Sequence[int]:
    """The tokens of `text` that follow where it has the end of `ids`; none where it has it nowhere.

    The longest agreement with the end of `ids` wins, one that skips a single replaced token a little behind; of equal
    ones that nearest to the same place in both, since a changed text usually falls back into step. A short agreement
    is trusted for a few tokens only: at most `most`, and not many more than agree.
    """
    best: tuple[float, int] | None = None
    result, trusted = 0, 0
    for j in range(1, len(text)):
        exact = _agreement(ids, len(ids), text, j)
        # The last token may be the one that was replaced.
        skipping = _agreement(ids, len(ids) - 1, text, j - 1) - 0.5 if exact == 0 else 0.0
        agreed = max(exact, skipping)
        rank = agreed, -abs(j - len(ids))
        if agreed >= 1 and (best is None or rank > best):
            best, result, trusted = rank, j, (TRUST * exact + 2 if exact else AFTER_SWAP)
    return text[result : result + min(most, trusted)] if best else []


def _agreement(ids: Sequence[int], i: int, text: Sequence[int], j: int) -> int:
    """How many tokens before ids[i] and text[j] agree, LONGEST at most."""
    length = 0
    while length < LONGEST and length < i and length < j and ids[i - 1 - length] == text[j - 1 - length]:
        length += 1
    return length


class Ngrams:
    """Where each run of up to `longest` tokens was last followed by another, in a sequence that only grows.

    Only the latest occurrence is kept. A match d tokens back is continued by repeating those d tokens, as in LZ77, so
    that no match is too close to the end.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._behind: dict[tuple[int, ...], int] = {}  # an n-gram: the place after it
        self._indexed = 1  # places below it are known; the first one has nothing before it

    def continuation(self, ids: Sequence[int], most: int) -> list[int]:
        """What follows the longest run at the end of `ids` that stands in it before: `most` tokens, or none.

        `ids` are those of the call before, and more: only these are read.
        """
        for place in range(self._indexed, len(ids)):
            for length in range(1, min(self._longest, place) + 1):
                self._behind[tuple(ids[place - length : place])] = place
        self._indexed = max(self._indexed, len(ids))
        for length in range(min(self._longest, len(ids) - 1), 0, -1):
            result = self._behind.get(tuple(ids[len(ids) - length :]))
            if result is not None:
                period = len(ids) - result
                return [ids[result + i % period] for i in range(most)]
        return []
