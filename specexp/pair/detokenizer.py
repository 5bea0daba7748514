"""Text of tokens as they come: no piece ends within a character, and all pieces together are the whole text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from specexp.pair.tokenization import Text

_LONG = 96  # tokens that are decoded again for every piece, at most
_KEPT = 32  # of these, what is kept when there are more
_SAME = 8  # characters that must be the same in both, before what is not yet handed over


class Pieces:
    """Hands the text of generated tokens to `hear`, piece by piece.

    Tokenizers decode a token by those before it, and some texts are changed by those after it: what is handed over is
    the settled text of a window of the last tokens, beyond what was handed over before. An EOS ends a text and has none
    itself.
    """

    def __init__(self, text: Text, eos_ids: Collection[int], hear: Callable[[str], object]) -> None:
        self._text, self._eos, self._hear = text, frozenset(eos_ids), hear
        self._window: list[int] = []
        self._heard = 0  # characters of the window's text that were handed over

    def add(self, tokens: Sequence[int]) -> None:
        """Take the tokens of one round; hand over what is certain."""
        self._window += [token for token in tokens if token not in self._eos]
        self._hand_over(self._text.settled(self._window))
        if len(self._window) > _LONG:
            self._shorten()

    def close(self) -> None:
        """Hand over what was held back."""
        self._hand_over(self._text.decode(self._window))

    def _hand_over(self, now: str) -> None:
        if piece := now[self._heard :]:
            self._heard = len(now)
            self._hear(piece)

    def _shorten(self) -> None:
        """Leave out tokens at the window's begin, if the text of the others ends as that of all."""
        whole, end = self._text.decode(self._window), self._window[-_KEPT:]
        text = self._text.decode(end)
        left = len(whole) - self._heard
        if len(text) >= left + _SAME and text[-left - _SAME :] == whole[-left - _SAME :]:
            self._window, self._heard = end, len(text) - left
