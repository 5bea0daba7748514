"""Text of tokens as they come: no piece ends within a character, and all pieces together are the whole text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from os.path import commonprefix

from specexp.evaluation.pair import Text

_UNFINISHED = "\ufffd"  # what a decoder puts in the place of bytes that make no character yet


class Pieces:
    """Hands the text of generated tokens to `hear`, piece by piece.

    Tokenizers decode a token by what stands before it, so each piece is the difference of two decodings that begin
    where the last but one ended. An EOS ends a text and has none itself.
    """

    def __init__(self, text: Text, eos_ids: Collection[int], hear: Callable[[str], object]) -> None:
        self._text, self._eos, self._hear = text, frozenset(eos_ids), hear
        self._ids: list[int] = []
        self._start = self._end = 0  # ids[start:end] were handed over last

    def add(self, tokens: Sequence[int]) -> None:
        """Take the tokens of one round; hand over what is certain."""
        self._ids += [token for token in tokens if token not in self._eos]
        self._hand_over(whole=False)

    def close(self) -> None:
        """Hand over what was held back."""
        self._hand_over(whole=True)

    def _hand_over(self, whole: bool) -> None:
        before = self._text.decode(self._ids[self._start : self._end])
        now = self._text.decode(self._ids[self._start :])
        # A tokenizer that tidies blanks up may take one back: it stands already.
        piece = now[len(commonprefix([before, now])) :]  # noqa: RUF071 (of texts, not of paths)
        if not piece or (now.endswith(_UNFINISHED) and not whole):
            return
        self._start, self._end = self._end, len(self._ids)
        self._hear(piece)
