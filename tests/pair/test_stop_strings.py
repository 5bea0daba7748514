"""Stop strings: an output ends with the token that completes one, and its text before it, in pieces and as a whole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

import specexp
from specexp import config
from specexp.config.request_settings import stops
from specexp.errors import ConfigError
from specexp.pair.detokenizer import Pieces
from specexp.pair.stop_strings import StopStrings, TokenBytes, text_of
from specexp.pair.tokenization import TokenizerText, ToyText

EOS, PAD = "</s>", "<pad>"
WORDS = ["▁a", "a", "ab", "b", "ba", "▁b", "c", "bc▁", "abc", "\n", "▁", "é", "xabx", "<end>"]


@cache
def kinds() -> dict[str, TokenizerText]:
    """Tokenizers of transformers' in which a token may be a word, a byte, or a name without a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def made(tokens: Sequence[str], decoder: Any) -> TokenizerText:
        names = dict.fromkeys([EOS, PAD, *"abcdef", *tokens])
        backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(names)}, unk_token=PAD))
        backend.decoder = decoder
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token=EOS, pad_token=PAD, additional_special_tokens=["<end>"]
        )
        return TokenizerText(tokenizer, chat=False)

    byte_level = [*pre_tokenizers.ByteLevel.alphabet(), "ab", "ba", "Ġa", "xabx", "<end>"]
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    names = [*WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    return {
        "byte-level": made(byte_level, decoders.ByteLevel()),
        "byte fallback": made(names, decoders.Sequence([*fallback, decoders.Strip(" ", 1, 0)])),
        "words": made(WORDS, decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])),
    }


KINDS = ("byte-level", "byte fallback", "words")
STRINGS = [("ab",), ("a",), ("aba", "bb"), ("b a", "é"), ("bcab",), ("<end>",), ("a<end>b", "c"), ("aab", "ab")]


def some(text: TokenizerText, numbers: random.Random, size: int) -> list[int]:
    known = text.tokenizer.get_vocab()
    names = [
        name
        for name in sorted(known, key=known.__getitem__)
        if set(name) <= set("▁Ġabcéx\n") or name == "<end>" or name in ("<0xC3>", "<0xA9>")
    ]
    e = [known[name] for name in ("Ã", "©") if name in known]
    parts = [e if e and numbers.random() < 0.1 else [known[numbers.choice(names)]] for _ in range(size)]
    return [token for part in parts for token in part]


def end_of(rule: StopStrings, prompt: Sequence[int], ids: Sequence[int]) -> int | None:
    """How many tokens the output has, by the finder."""
    finder = rule.begin(prompt)
    return next((number for number, token in enumerate(ids, 1) if finder.add(token)), None)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_ends_where_generates_criterion_ends_it(kind: str) -> None:
    from transformers import StopStringCriteria

    text, numbers, ended = kinds()[kind], random.Random(kind), 0
    for strings in STRINGS:
        criterion = StopStringCriteria(text.tokenizer, list(strings))
        rule = StopStrings(strings, TokenBytes(text))
        for _ in range(12):
            prompt, ids = some(text, numbers, 4), some(text, numbers, 24)
            expected = None
            for number in range(1, len(ids) + 1):
                if bool(criterion(torch.tensor([[*prompt, *ids[:number]]]), None)[0]):
                    expected = number
                    break
            assert end_of(rule, prompt, ids) == expected, (strings, prompt, ids)
            ended += expected is not None
    assert ended > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_ends_before_the_string_in_pieces_and_as_a_whole(kind: str) -> None:
    text, numbers, inside = kinds()[kind], random.Random(kind), 0
    for strings in STRINGS[:6]:
        rule = StopStrings(strings, TokenBytes(text))
        for _ in range(25):
            ids = some(text, numbers, 30)
            if strings != ("<end>",):  # whose name is not in the text, but is between what it separates
                ids = [token for token in ids if token not in ids_of(text, "<end>")]
            end = end_of(rule, (), ids)
            kept = ids[:end]
            shown = text_of(text, kept, "length" if end is None else "stop_string", rule, ())
            whole = text.decode(kept)
            places = [place for each in strings if (place := whole.find(each)) >= 0]
            if strings != ("<end>",):
                assert shown == (whole[: min(places)] if places else whole)
                inside += bool(places) and not whole.endswith(strings)
            heard: list[str] = []
            pieces = Pieces(text, (), heard.append, rule.begin(()))
            start = 0
            while start < len(kept):
                size = numbers.randint(1, 4)
                pieces.add(kept[start : start + size])
                assert shown.startswith("".join(heard)), "what was passed on is taken back"
                start += size
            pieces.close()
            assert "".join(heard) == shown
    assert inside, "no stop string ended inside a token"


def test_a_string_in_bytes_that_are_not_all_characters_ends_an_output() -> None:
    """The decoder of byte tokens shows all bytes of a run as unknown if one of them is: the string is in them alone."""
    text = kinds()["byte fallback"]
    rule, ids = StopStrings(("é",), TokenBytes(text)), ids_of(text, "<0xC3>", "<0xC3>", "<0xA9>")
    assert text.decode(ids) == "\N{REPLACEMENT CHARACTER}" * 3
    assert end_of(rule, (), ids) == 3
    assert text_of(text, ids, "stop_string", rule, ()) == "\N{REPLACEMENT CHARACTER}"


def ids_of(text: TokenizerText, *names: str) -> list[int]:
    return [text.tokenizer.get_vocab()[name] for name in names]


def test_a_string_across_tokens_by_hand() -> None:
    text = kinds()["words"]
    rule = StopStrings(("bcab",), TokenBytes(text))
    ids = ids_of(text, "a", "ab", "c", "xabx", "a")
    assert end_of(rule, (), ids) is None
    ids = ids_of(text, "a", "ab", "c", "abc", "a")
    assert end_of(rule, (), ids) == 4
    assert text_of(text, ids[:4], "stop_string", rule, ()) == "aa"
    heard: list[str] = []
    pieces = Pieces(text, (), heard.append, rule.begin(()))
    for token in ids[:4]:
        pieces.add([token])
    assert heard == ["a", "a"], "the b may be the beginning of a stop string"
    pieces.close()
    assert heard == ["a", "a"]


def test_what_is_held_back_comes_once_it_is_no_stop_string() -> None:
    text, heard = kinds()["words"], list[str]()
    pieces = Pieces(text, (), heard.append, StopStrings(("bcab",), TokenBytes(text)).begin(()))
    for token in ids_of(text, "a", "ab", "c", "c", "b"):
        pieces.add([token])
    assert heard == ["a", "a", "bcc"]
    pieces.close()
    assert heard == ["a", "a", "bcc", "b"]


def test_a_string_that_begins_in_the_prompt_leaves_no_text() -> None:
    text = kinds()["words"]
    rule = StopStrings(("\n\n",), TokenBytes(text))
    prompt, ids = ids_of(text, "ab", "\n"), ids_of(text, "\n", "a")
    assert end_of(rule, prompt, ids) == 1
    assert text_of(text, ids[:1], "stop_string", rule, prompt) == ""
    assert end_of(rule, ids_of(text, "\n", "\n"), ids_of(text, "a", "b")) is None, "the prompt's own ends nothing"


def test_a_character_of_two_byte_tokens() -> None:
    text = kinds()["byte fallback"]
    rule = StopStrings(("é",), TokenBytes(text))
    ids = ids_of(text, "a", "<0xC3>", "<0xA9>", "b")
    assert end_of(rule, (), ids) == 3
    assert text_of(text, ids[:3], "stop_string", rule, ()) == "a"


def test_the_tail_is_all_that_is_kept() -> None:
    text = kinds()["words"]
    finder = StopStrings(("abc" * 3,), TokenBytes(text)).begin(())
    for _ in range(100):
        finder.add(ids_of(text, "ab")[0])
    assert len(finder.tail) == 8


def test_the_first_of_several_strings_in_a_token_cuts_the_text() -> None:
    text = kinds()["words"]
    rule = StopStrings(("bx", "xa"), TokenBytes(text))
    ids = ids_of(text, "a", "xabx")
    assert text_of(text, ids, "stop_string", rule, ()) == "a"


@pytest.mark.parametrize("method", ["baseline", "speculative", "lookup", "suffix", "specexec"])
def test_every_method_stops_where_plain_decoding_does(method: str) -> None:
    pair, cut = specexp.load("toy_quick"), 0
    for prompt in ("hello", "a b"):
        free = pair.generate(prompt, "baseline", max_new_tokens=24)
        for place in range(2, len(free.token_ids) - 3, 4):
            stop = " ".join(map(str, free.token_ids[place : place + 2]))
            heard: list[str] = []
            out = pair.generate(prompt, method, max_new_tokens=24, stop=[stop, "no such"], on_text=heard.append)
            end = next(
                number
                for number in range(1, len(free.token_ids) + 1)
                if stop in " " + " ".join(map(str, free.token_ids[:number]))
            )
            assert (out.token_ids, out.finish_reason) == (free.token_ids[:end], "stop_string")
            whole = " ".join(map(str, out.token_ids))
            assert out.text == "".join(heard) == whole[: whole.find(stop)]
            cut += out.counts["num_cut"]
    assert cut or method in ("baseline", "lookup", "suffix"), "no stop string fell inside a round"


def test_rows_of_a_batch_have_stop_strings_of_their_own() -> None:
    pair = specexp.load("toy_quick")
    free = pair.generate("hello", "baseline", max_new_tokens=24).token_ids
    asked = [
        config.adjusted(pair.experiment, {"methods": "speculative", "max_new_tokens": 24, **more})
        for more in ({}, {"stop": f" {free[5]}"}, {"stop": [f"{free[8]} {free[9]}"]}, {"min_new_tokens": 3})
    ]
    requests = [pair.request("hello", each) for each in asked]
    got = dict(pair.engine(4).generate_all(requests))
    assert [got[i].token_ids for i in range(4)] == [pair.decode("hello", each).token_ids for each in asked]
    assert {got[i].finish_reason for i in (1, 2)} == {"stop_string"}


def test_the_toys_numbers_are_spelled_with_a_space() -> None:
    spell = TokenBytes(ToyText(24))
    assert spell(7) == b" 7"


@pytest.mark.parametrize(
    "value,expected",
    [
        ("\n\n", ("\n\n",)), ('["a", "b"]', ("a", "b")), (["a"], ("a",)), ("[", ("[",)), ("a,b", ("a,b",)),
    ],
)  # fmt: skip
def test_stop_strings_as_they_are_written(value: Any, expected: tuple[str, ...]) -> None:
    assert stops(value) == expected
    assert config.resolve("arith_quick", {"stop": value}).stop == expected


@pytest.mark.parametrize("value", [[], ["a", "a"], ["a", ""], [1], '["a"', "x" * 1001, 3])
def test_bad_stop_strings_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", {"stop": value})
    assert "it must be a text that is not empty, or a list of at most 64" in str(error.value)
