"""Finds the text of each token, and replaces invisible characters by visible marks. It writes no HTML.

A token may be only a part of a character, or a space that disappears when it is decoded alone: a token's text is what
it adds to the text of the tokens before it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from specexp.pair.tokenization import Text

TEXT, PART, SPECIAL = "text", "part", "special"
_BROKEN = "\ufffd"  # decoded from bytes that are not a character, or not yet
_LONGEST = 8  # tokens to wait for the end of a character, which has at most four bytes; this ends invalid ones
_JOINERS = "\u200c\u200d"  # regular parts of words and emoji
_MARKED = {" ": "·", "\t": "⇥", "\n": "↵"}


@dataclass(frozen=True, slots=True)
class Piece:
    """The text that a token adds (`kind` text); or the name of a token that adds none (`special`), or that is a part of
    a character whose text belongs to a later token (`part`)."""

    kind: str
    text: str


def spelled(text: Text, ids: Sequence[int], ends: Collection[int] = ()) -> list[Piece]:
    """One piece per token. The joined texts equal what `text` decodes, except for tokens in `ends`, which are always
    special."""
    pieces = _spelled(text, ids, ends)
    whole = text.decode([token for token in ids if token not in ends])
    # If a token changes the text of those before it, compare with the whole text to find what each adds.
    return pieces if _texts(pieces) == whole else _parts_of(whole, text, ids, ends)


def _texts(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == TEXT)


def _parts_of(whole: str, text: Text, ids: Sequence[int], ends: Collection[int]) -> list[Piece]:
    """Each token's part of the whole text: the prefix that is decoded with the token, minus the prefix before it."""
    pieces: list[Piece] = []
    known: list[int] = []
    done, last = 0, None
    for token in ids:
        if token in ends:
            pieces.append(Piece(SPECIAL, text.piece(token)))
            continue
        known.append(token)
        upto = max(done, len(commonprefix([text.decode(known), whole])))  # noqa: RUF071 (of texts, not of paths)
        if upto > done:
            pieces.append(Piece(TEXT, whole[done:upto]))
        else:
            pieces.append(Piece(PART if text.decode([token]) else SPECIAL, text.piece(token)))
        done, last = upto, len(pieces) - 1
    if done < len(whole) and last is not None:
        begun = pieces[last].text if pieces[last].kind == TEXT else ""
        pieces[last] = Piece(TEXT, begun + whole[done:])
    return pieces


def _spelled(text: Text, ids: Sequence[int], ends: Collection[int]) -> list[Piece]:
    pieces: list[Piece] = []
    before, read = 0, 0  # the start of the window, and the number of tokens whose text is complete
    for place, token in enumerate(ids):
        known = text.decode(ids[before:read])
        now = text.decode(ids[before : place + 1])
        new = now[len(known) :] if now.startswith(known) else text.decode([token])
        waiting = place - read
        if token in ends or not (text.decode([token]) if waiting else new):
            if waiting:  # an incomplete character ends here
                pieces[-1] = Piece(TEXT, new)
            pieces.append(Piece(SPECIAL, text.piece(token)))
            read = place + 1
        elif new.endswith(_BROKEN) and waiting < _LONGEST and place + 1 < len(ids):
            pieces.append(Piece(PART, text.piece(token)))
        else:
            pieces.append(Piece(TEXT, new))
            before, read = read, place + 1
    return pieces


def alone(text: Text, token: int) -> str:
    """The text of a token by itself, or its name if it has none."""
    result = text.decode([token])
    return text.piece(token) if not result or _BROKEN in result else result


def marked(texts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Split each text into parts (original text, the mark to show for it or "").

    Line ends, tabs and spaces at a line's end have marks; control and direction characters are replaced by their names,
    so that they have no effect. `texts` are consecutive: the end of a line may be in the next one.
    """
    whole = "".join(texts)
    # A trailing space is followed by spaces and then by the end of the line or of the text.
    trailing, ending = [False] * len(whole), True
    for i in range(len(whole) - 1, -1, -1):
        if whole[i] == " ":
            trailing[i] = ending
        else:
            ending = whole[i] in "\n\r"
    result, at = [], 0
    for text in texts:
        parts: list[tuple[str, str]] = []
        for i, sign in enumerate(text, at):
            mark = _MARKED[sign] if sign in _MARKED and (sign != " " or trailing[i]) else named(sign)
            if parts and not mark and not parts[-1][1]:
                parts[-1] = parts[-1][0] + sign, ""
            else:
                parts.append((sign, mark))
        result.append(parts)
        at += len(text)
    return result


def named(sign: str) -> str:
    """The name of a control or direction character, or of half a surrogate pair; "" for any other."""
    kind = unicodedata.category(sign)
    if kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") or sign in _JOINERS or sign in "\n\t":
        return ""
    return f"⟨U+{ord(sign):04X}⟩"


def plain(text: str) -> str:
    """The text on one line, with marks for invisible characters: for a tooltip or a list."""
    return "".join(_MARKED[sign] if sign in "\n\t" else named(sign) or sign for sign in text)
