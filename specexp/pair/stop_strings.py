"""Stop strings: finds the token that completes one, and the text before it. Each token's bytes are looked at once.

An output ends with the token in which a stop string is complete, as transformers' `StopStringCriteria` has it: the
string may begin inside one token, or in the prompt, and end inside another. The text that is shown ends before the
string's first character. Texts are compared as bytes, since a token may be a part of a character.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specexp.pair.tokenization import Text, TokenizerText

_PREFIX = "abcdef"  # what a token follows when its own text is read
_BYTE_LEVEL, _BYTE_FALLBACK = "ByteLevel", "ByteFallback"


class TokenBytes:
    """The bytes that each token adds to a text, inside it: those of special tokens are their names."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._known: dict[int, bytes] = {}
        self._base: list[str] = []
        self._kind = ""
        if isinstance(text, TokenizerText):
            tokenizer = text.tokenizer
            ids = tokenizer(_PREFIX, add_special_tokens=False)["input_ids"]
            self._base = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
            self._kind = _kind_of(tokenizer)

    def __call__(self, token: int) -> bytes:
        result = self._known.get(token)
        if result is None:
            result = self._known[token] = self._bytes(token)
        return result

    def _bytes(self, token: int) -> bytes:
        if not isinstance(self._text, TokenizerText):
            return f" {self._text.decode([token])}".encode()
        name = self._text.piece(token)
        if self._kind == _BYTE_LEVEL and all(character in _BYTES for character in name):
            return bytes(_BYTES[character] for character in name)
        if self._kind == _BYTE_FALLBACK and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            try:
                return bytes([int(name[3:5], 16)])
            except ValueError:
                pass
        spelled = str(self._text.tokenizer.convert_tokens_to_string([*self._base, name]))
        _, found, own = spelled.partition(_PREFIX)
        return (own if found else self._text.decode([token])).encode("utf-8", "surrogatepass")


def _kind_of(tokenizer: Any) -> str:
    """How the tokenizer's decoder reads bytes: explicit byte tokens come first."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    state = getattr(decoder, "__getstate__", lambda: None)()
    try:
        types = list(_types(json.loads(state))) if isinstance(state, str | bytes) else []
    except ValueError:
        types = []
    return next((kind for kind in (_BYTE_FALLBACK, _BYTE_LEVEL) if kind in types), "")


def _types(value: Any) -> list[str]:
    if isinstance(value, list):
        return [kind for each in value for kind in _types(each)]
    if not isinstance(value, dict):
        return []
    return [str(value.get("type", "")), *(kind for each in value.values() for kind in _types(each))]


def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of()


@dataclass(frozen=True, slots=True)
class StopStrings:
    """The stop strings of requests, and how tokens are spelled. Unless `in_prompt`, none begins in the prompt."""

    strings: tuple[str, ...]
    spell: TokenBytes
    in_prompt: bool = True

    def begin(self, prompt_ids: Sequence[int]) -> Finder:
        """A finder for an output after this prompt."""
        finder = Finder(tuple(each.encode() for each in self.strings), self.spell)
        tail = b""
        for token in reversed(prompt_ids[-finder.longest :] if self.in_prompt else ()):
            if len(tail) >= finder.longest:
                break
            tail = self.spell(token) + tail
        finder.tail = tail[-finder.longest :] if finder.longest else b""
        return finder

    def cut(self, text: Text, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        """The text of an output that its last token ends, up to the stop string."""
        finder = self.begin(prompt_ids)
        for token in ids:
            finder.add(token)
        return before(text.decode, self.spell, ids, finder.found)


def text_of(
    text: Text, ids: Sequence[int], finish_reason: str, stop: StopStrings | None, prompt_ids: Sequence[int]
) -> str:
    """The text of an output: without its EOS, and up to its stop string."""
    if finish_reason == "stop_string":
        assert stop is not None, "no stop string was given"
        return stop.cut(text, prompt_ids, ids)
    return text.decode(ids[:-1] if finish_reason == "stop" else ids)


@dataclass(slots=True)
class Finder:
    """Looks for stop strings in an output, token by token. `found` are the bytes from the first character of the one
    that was found to the end of the output so far; 0 while there is none."""

    strings: tuple[bytes, ...]
    spell: Callable[[int], bytes]
    tail: bytes = b""  # the end of the text so far, in which a string may have begun
    found: int = 0
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        self.longest = max(map(len, self.strings)) - 1

    def add(self, token: int) -> bool:
        own = self.spell(token)
        text = self.tail + own
        # A string that ends before this token would have been found before.
        starts = [text.find(each, max(0, len(self.tail) - len(each) + 1)) for each in self.strings]
        starts = [start for start in starts if start >= 0]
        if starts:
            self.found = len(text) - min(starts)
        self.tail = text[-self.longest :] if self.longest else b""
        return bool(starts)

    @property
    def held(self) -> int:
        """How many bytes at the end of the text may be the beginning of a stop string."""
        return max(
            (size for each in self.strings for size in range(1, len(each)) if self.tail.endswith(each[:size])),
            default=0,
        )


def before(
    decode: Callable[[Sequence[int]], str], spell: Callable[[int], bytes], ids: Sequence[int], num_bytes: int
) -> str:
    """The text of these tokens without the last `num_bytes` bytes of what they spell."""
    end = len(ids)
    while end and num_bytes >= len(spell(ids[end - 1])) and num_bytes:
        end -= 1
        num_bytes -= len(spell(ids[end]))
    if not num_bytes or not end:
        return decode(ids[:end]) if not num_bytes else ""
    whole, without = decode(ids[:end]), decode(ids[: end - 1])
    if whole == without:  # a token without a text, such as a special one
        return whole
    dropped = len(spell(ids[end - 1])[-num_bytes:].decode("utf-8", "replace"))
    return whole[: max(0, len(whole) - dropped)]
