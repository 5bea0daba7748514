"""Streamed pieces join to the final text for every kind of tokenizer, wherever the ids are cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexp.pair.detokenizer import Pieces
from specexp.pair.token_text import PART, SPECIAL, TEXT, spelled
from specexp.pair.tokenization import TokenizerText

EOS, PAD = "</s>", "<pad>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MARKED = ["▁", "▁a", "a", "▁é", "b", ".", ",", "▁.", "'", "▁'", "s", "n", "▁n", "'t", "\n", "�", "▁▁", "漢"]
WORDS = [
    "a",
    "##b",
    "##s",
    "n",
    "##'",
    "'",
    "t",
    ".",
    "?",
    "n't",
    "'s",
    "do",
    "not",
    "##é",
    "漢",
    "m",
    "ve",
    "re",
    "!",
    ",",
]


def made(tokens: Sequence[str], decoder: Any, tidy: bool = False) -> TokenizerText:
    """A tokenizer of transformers' with these tokens; only its way of decoding matters."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([EOS, PAD, *tokens]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    backend.decoder = decoder
    whole = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=tidy
    )
    return TokenizerText(whole, chat=False)


@cache
def kinds() -> dict[str, TokenizerText]:
    from tokenizers import decoders, pre_tokenizers

    space, fallback, fuse = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    strip = decoders.Strip(" ", 1, 0)
    return {
        "byte-level": made(pre_tokenizers.ByteLevel.alphabet(), decoders.ByteLevel()),
        "byte-level, tidied": made([*pre_tokenizers.ByteLevel.alphabet(), "Ġn", "'t"], decoders.ByteLevel(), True),
        "byte fallback": made([*MARKED, *BYTES], decoders.Sequence([space, fallback, fuse, strip])),
        "byte fallback without strip": made([*MARKED, *BYTES], decoders.Sequence([space, fallback, fuse])),
        "byte fallback, tidied": made([*MARKED, *BYTES], decoders.Sequence([space, fallback, fuse, strip]), True),
        "metaspace": made(MARKED, decoders.Metaspace()),
        "metaspace, tidied": made(MARKED, decoders.Metaspace(), True),
        "word pieces": made(WORDS, decoders.WordPiece(cleanup=False)),
        "word pieces with cleanup": made(WORDS, decoders.WordPiece(cleanup=True)),
        "word pieces, tidied": made(WORDS, decoders.WordPiece(cleanup=False), True),
        "suffixes": made(["a</w>", "a", "b</w>", "é", ".</w>", "n", "'t</w>"], decoders.BPEDecoder("</w>")),
        "letters of speech": made(["a", "b", "|", "'", "s", "<unk>"], decoders.CTC(PAD, "|", True)),
    }


KINDS = (
    "byte-level", "byte-level, tidied", "byte fallback", "byte fallback without strip", "byte fallback, tidied",
    "metaspace", "metaspace, tidied", "word pieces", "word pieces with cleanup", "word pieces, tidied", "suffixes",
    "letters of speech",
)  # fmt: skip
# Some characters in bytes, so that random ids hold whole, broken and cut ones.
CHARACTERS = [" ", "\n", "é", "€", "漢", "👩", "a", ".", "'", "n"]


def streamed(text: TokenizerText, ids: Sequence[int], sizes: Sequence[int]) -> list[str]:
    """The pieces of these ids, which come in rounds of these sizes, again and again."""
    heard: list[str] = []
    pieces = Pieces(text, (), heard.append)
    start = number = 0
    while start < len(ids):
        size = sizes[number % len(sizes)]
        pieces.add(ids[start : start + size])
        start, number = start + size, number + 1
    pieces.close()
    return heard


@st.composite
def cut_ids(draw: st.DrawFn, kind: str) -> list[int]:
    """Random tokens, bytes of characters among them, cut anywhere."""
    vocabulary = kinds()[kind].tokenizer.get_vocab()
    anything = st.sampled_from(sorted(vocabulary.values())).map(lambda token: [token])
    parts = [anything, st.just([vocabulary[PAD]])]
    if "byte" in kind:
        names = BYTES if "fallback" in kind else _alphabet()
        parts += [st.sampled_from(CHARACTERS).map(lambda c: [vocabulary[names[b]] for b in c.encode()])] * 2
    if "fallback" in kind:
        parts.append(st.sampled_from(MARKED).map(lambda token: [vocabulary[token]]))
    ids = [token for part in draw(st.lists(st.one_of(parts), max_size=40)) for token in part]
    return ids[: draw(st.integers(0, len(ids)))] if draw(st.booleans()) else ids


@cache
def _alphabet() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies."""
    text = kinds()["byte-level"].tokenizer
    by_byte = {bytes_of(character): character for character in text.get_vocab() if len(character) == 1}
    return [by_byte[byte] for byte in range(256)]


def bytes_of(character: str) -> int:
    """As byte-level tokenizers have it: what can be printed stands for itself, the others for what follows 255."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return ord(character) if ord(character) in printed else others[ord(character) - 256]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_to_the_final_text_wherever_the_ids_are_cut(kind: str) -> None:
    text = kinds()[kind]

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(cut_ids(kind), st.lists(st.integers(1, 5), min_size=1, max_size=3))
    def hold(ids: list[int], sizes: list[int]) -> None:
        whole = text.decode(ids)
        assert "".join(streamed(text, ids, sizes)) == whole
        pieces = spelled(text, ids)
        assert "".join(piece.text for piece in pieces if piece.kind == TEXT) == whole
        assert len(pieces) == len(ids)

    hold()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_streamed_from_a_window_of_its_last_tokens(kind: str) -> None:
    text = kinds()[kind]
    ids = sorted(text.tokenizer.get_vocab().values()) * (400 // len(text.tokenizer.get_vocab()) + 1)
    longest = 0

    class Watched:
        def decode(self, ids: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return text.decode(ids)

        def stable_text(self, ids: Sequence[int]) -> str:
            return text.stable_text(ids)

    heard: list[str] = []
    pieces = Pieces(Watched(), (), heard.append)  # type: ignore[arg-type]
    for token in ids:
        pieces.add([token])
    pieces.close()
    assert "".join(heard) == text.decode(ids)
    assert len(heard) > len(ids) / 20
    if "fallback" not in kind:  # whose bytes are one run here
        assert longest < 200


def test_a_character_by_byte_fallback_that_is_cut_off_breaks_what_was_not_shown_yet() -> None:
    """All bytes without another token between are decoded together: é is shown when it is certain."""
    text = kinds()["byte fallback"]
    vocabulary = text.tokenizer.get_vocab()
    whole, cut = [vocabulary[f"<0x{b:02X}>"] for b in "é".encode()], [vocabulary["<0xE2>"], vocabulary["<0x82>"]]
    assert streamed(text, [vocabulary["▁a"], *whole, *cut], [1]) == ["a", text.decode([*whole, *cut])]
    assert streamed(text, [vocabulary["▁a"], *whole, vocabulary["b"], *cut], [1]) == ["a", "éb", "\ufffd\ufffd"]
    kept = [piece.kind for piece in spelled(text, [vocabulary["▁a"], *whole, *cut])]
    assert kept[0] == TEXT
    assert set(kept) <= {TEXT, PART, SPECIAL}
