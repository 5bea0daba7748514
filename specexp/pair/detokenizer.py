"""Streams the text of generated tokens: no piece ends within a character, and all pieces joined are the whole text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from specexp.pair.stop_strings import Finder, before
from specexp.pair.tokenization import Text

_LONG = 96  # maximum number of tokens that are decoded again for every piece
_KEPT = 32  # number of last tokens that remain when the window gets longer
_SAME = 8  # characters before the pending text that both windows must have in common


class Pieces:
    """Passes the text of generated tokens to `hear`, piece by piece.

    How a tokenizer decodes a token depends on the tokens before it, and sometimes on those after it. A piece is
    therefore the stable text of a window of the last tokens, minus the text passed before. An EOS ends a text and has
    no text itself. With `finder`, text that may still be the beginning of a stop string is held back, and nothing from
    its first character on is passed.
    """

    def __init__(
        self, text: Text, eos_ids: Collection[int], hear: Callable[[str], object], finder: Finder | None = None
    ) -> None:
        self._text, self._eos, self._hear, self._finder = text, frozenset(eos_ids), hear, finder
        self._window: list[int] = []
        self._heard = 0  # characters of the window's text that were passed to `hear`

    def add(self, tokens: Sequence[int]) -> None:
        """Add the tokens of one round; pass on the text that no later token can change."""
        new = [token for token in tokens if token not in self._eos]
        self._window += new
        held = 0
        if self._finder is not None:
            for token in new:
                self._finder.add(token)
            held = self._finder.found or self._finder.held
        self._hand_over(self._without(held, self._text.stable_text))
        if len(self._window) > _LONG:
            self._shorten()

    def close(self) -> None:
        """Pass on the rest of the text."""
        self._hand_over(self._without(0 if self._finder is None else self._finder.found, self._text.decode))

    def _without(self, held: int, decode: Callable[[Sequence[int]], str]) -> str:
        """The window's text without its last `held` bytes."""
        if not held or self._finder is None:
            return decode(self._window)
        return before(decode, self._finder.spell, self._window, held)

    def _hand_over(self, now: str) -> None:
        if piece := now[self._heard :]:
            self._heard = len(now)
            self._hear(piece)

    def _shorten(self) -> None:
        """Drop tokens at the start of the window, if the text of the others is a matching end of the whole text."""
        whole, end = self._text.decode(self._window), self._window[-_KEPT:]
        text = self._text.decode(end)
        left = len(whole) - self._heard
        if len(text) >= left + _SAME and text[-left - _SAME :] == whole[-left - _SAME :]:
            self._window, self._heard = end, len(text) - left
