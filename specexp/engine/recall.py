"""Where a text goes on: prompt lookup's search, made for a text that is being said again with changes."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 12  # how far back an agreement is looked at
TRUST, AFTER_SWAP = 2, 3  # tokens offered for each one that agrees, and behind a replaced one


def continuation(ids: Sequence[int], text: Sequence[int], most: int) -> Sequence[int]:
    """What `text` goes on with where it says what `ids` ends on; nothing where it does not say it.

    The longest agreement with the end of `ids` wins, one that skips a single replaced token a little behind; of equal
    ones that nearest to the same place in both, since a changed text usually falls back into step. A short agreement
    is trusted for a few tokens only: at most `most`, and not many more than agree.
    """
    best: tuple[float, int] | None = None
    found, trusted = 0, 0
    for j in range(1, len(text)):
        exact = _agreement(ids, len(ids), text, j)
        # The last token may be the one that was replaced.
        skipping = _agreement(ids, len(ids) - 1, text, j - 1) - 0.5 if exact == 0 else 0.0
        agreed = max(exact, skipping)
        rank = agreed, -abs(j - len(ids))
        if agreed >= 1 and (best is None or rank > best):
            best, found, trusted = rank, j, (TRUST * exact + 2 if exact else AFTER_SWAP)
    return text[found : found + min(most, trusted)] if best else []


def _agreement(ids: Sequence[int], i: int, text: Sequence[int], j: int) -> int:
    """How many tokens before ids[i] and text[j] agree, LONGEST at most."""
    length = 0
    while length < LONGEST and length < i and length < j and ids[i - 1 - length] == text[j - 1 - length]:
        length += 1
    return length
