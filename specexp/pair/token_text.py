"""Each token's own text, and what is invisible in a text made visible. It knows no page.

A token may be a part of a character only, or a space that disappears when it is decoded alone: texts are what a token
adds to those before it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from specexp.pair.tokenization import Text

TEXT, PART, SPECIAL = "text", "part", "special"
_BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet
_LONGEST = 8  # tokens that are waited for until a character is whole: one has four bytes at most, and broken ones end
_JOINERS = "\u200c\u200d"  # part of how words and emoji are written
_MARKED = {" ": "·", "\t": "⇥", "\n": "↵"}


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token adds to the text (`kind` text); or the name of one that adds none (`special`), or that is a part of
    a character whose text stands with a later token (`part`)."""

    kind: str
    text: str


def spelled(text: Text, ids: Sequence[int], ends: Collection[int] = ()) -> list[Piece]:
    """One piece a token. The texts are together what `text` decodes, but for `ends`, which are special whatever it
    makes of them."""
    pieces = _spelled(text, ids, ends)
    whole = text.decode([token for token in ids if token not in ends])
    # Where a token changes the text of those before it, what each adds shows only beside the whole.
    return pieces if _texts(pieces) == whole else _parts_of(whole, text, ids, ends)


def _texts(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == TEXT)


def _parts_of(whole: str, text: Text, ids: Sequence[int], ends: Collection[int]) -> list[Piece]:
    """Each token's part of the whole text: how much of its beginning is there with the token, less what was before."""
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
    before, read = 0, 0  # the window's begin, and how far texts were given out
    for place, token in enumerate(ids):
        known = text.decode(ids[before:read])
        now = text.decode(ids[before : place + 1])
        new = now[len(known) :] if now.startswith(known) else text.decode([token])
        waiting = place - read
        if token in ends or not (text.decode([token]) if waiting else new):
            if waiting:  # for a character that ends here
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
    """A token by itself, for one that stands in no text."""
    found = text.decode([token])
    return text.piece(token) if not found or _BROKEN in found else found


def marked(texts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Each text in parts: (what stands there, what is to be seen for it or "").

    Line ends, tabs and spaces at a line's end have marks; control and direction characters are named, and none of them
    is left to work. `texts` follow each other: a line's end may be in the next one.
    """
    whole = "".join(texts)
    # A space at a line's end is followed by spaces and then a line's end, or the text's.
    trailing, ending = [False] * len(whole), True
    for i in range(len(whole) - 1, -1, -1):
        if whole[i] == " ":
            trailing[i] = ending
        else:
            ending = whole[i] in "\n\r"
    found, at = [], 0
    for text in texts:
        parts: list[tuple[str, str]] = []
        for i, sign in enumerate(text, at):
            mark = _MARKED[sign] if sign in _MARKED and (sign != " " or trailing[i]) else named(sign)
            if parts and not mark and not parts[-1][1]:
                parts[-1] = parts[-1][0] + sign, ""
            else:
                parts.append((sign, mark))
        found.append(parts)
        at += len(text)
    return found


def named(sign: str) -> str:
    """How a control or direction character, or half of a surrogate pair, is called; "" for any other."""
    kind = unicodedata.category(sign)
    if kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") or sign in _JOINERS or sign in "\n\t":
        return ""
    return f"⟨U+{ord(sign):04X}⟩"


def plain(text: str) -> str:
    """On one line, with marks in place of what cannot be seen: for a hint or a list."""
    return "".join(_MARKED[sign] if sign in "\n\t" else named(sign) or sign for sign in text)
