"""Finds continuations: prompt lookup's search in the sequence itself, and a search in a text that is being changed."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 12  # the most tokens that are compared
TRUST, AFTER_SWAP = 2, 3  # tokens proposed for each one that agrees, and after a replaced one


def continuation(ids: Sequence[int], text: Sequence[int], most: int) -> Sequence[int]:
    """The tokens that follow an occurrence of the end of `ids` in `text`; none if there is no occurrence.

    The longest agreement with the end of `ids` wins; one that skips a single replaced token counts half a token less.
    Of equal ones, the one closest to the same position in both wins, since a changed text usually realigns. A short
    agreement proposes a few tokens only: at most `most`, and about twice as many as agree.
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
    """The latest occurrence of each n-gram of up to `longest` tokens, in a sequence that only grows.

    A match d tokens back is continued by repeating those d tokens, as in LZ77, so that no match is too close to the
    end.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._behind: dict[tuple[int, ...], int] = {}  # n-gram: the position after it
        self._indexed = 1  # positions below it are indexed; no n-gram ends before position 1

    def continuation(self, ids: Sequence[int], most: int, shortest: int = 1) -> list[int]:
        """What follows an earlier occurrence of the longest n-gram at the end of `ids`: `most` tokens, or none.

        It has at least `shortest` tokens. `ids` must extend those of the previous call: only the new ones are indexed.
        """
        for place in range(self._indexed, len(ids)):
            for length in range(1, min(self._longest, place) + 1):
                self._behind[tuple(ids[place - length : place])] = place
        self._indexed = max(self._indexed, len(ids))
        for length in range(min(self._longest, len(ids) - 1), shortest - 1, -1):
            result = self._behind.get(tuple(ids[len(ids) - length :]))
            if result is not None:
                period = len(ids) - result
                return [ids[result + i % period] for i in range(most)]
        return []
