"""A text that grows and is cut, in a draft's tokens: part by part, what the whole text is by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from transformers import AutoTokenizer

from helpers import other_tokenizers
from specexp.lm.hf.source import resolve
from specexp.lm.own_text import SettledText, common_prefix
from specexp.pair.translation import TokenizerTranslation, Vocabulary

KINDS = ("permuted", "fewer", "sentencepiece")
WORDS = (
    "Tom", "has", "12 cards.", "He buys", "3 more,", "naïve", "café", "日本語", "👍", "\n", "\n\n", "\t end", "  two",
    "#### 42", "- A. ", "\u00a0", "\u3000x", "Anna's", "x" * 70, "don't",
)  # fmt: skip


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vocabulary]:
    place = tmp_path_factory.mktemp("other")
    places = {kind: str(other_tokenizers.save(place / kind, kind)) for kind in KINDS} | {
        "target": str(resolve("zoo:target"))
    }
    tokenizers = {name: AutoTokenizer.from_pretrained(place) for name, place in places.items()}
    return {name: Vocabulary(each, [each.eos_token_id]) for name, each in tokenizers.items()}


def some_ids(vocabulary: Vocabulary, numbers: random.Random, special: bool) -> list[int]:
    """A text of some words, with single tokens of all kinds in it: bytes of unfinished characters, special ones."""
    ids: list[int] = []
    for _ in range(numbers.randrange(1, 60)):
        ids += vocabulary.encode(" " * numbers.randrange(2) + numbers.choice(WORDS), not ids)
        if special and numbers.random() < 0.15:
            ids.append(numbers.randrange(vocabulary.size))
    return ids


@pytest.mark.parametrize("draft", KINDS)
@pytest.mark.parametrize("target", ["target", "sentencepiece"])
def test_parts_are_the_whole(vocabularies: dict[str, Vocabulary], target: str, draft: str) -> None:
    """Whatever ids come and go; where no text is cut off, these are the tokenizer's own ids of the text."""
    translation = TokenizerTranslation(vocabularies[target], vocabularies[draft])
    whole = vocabularies[draft].tokenizer
    numbers, settled, ids, num_settled, num_long = random.Random(target + draft), SettledText(), [], 0, 0
    for turn in range(240):
        special = turn % 2 == 0
        new = some_ids(vocabularies[target], numbers, special)
        kept = ids[: numbers.randrange(len(ids) + 1)] if numbers.random() < 0.7 and special else []
        given = kept + new
        settled.cut(common_prefix(ids, given))
        ids = given
        for count in [*sorted(numbers.sample(range(len(ids) + 1), min(len(ids), 3))), len(ids)]:
            settled.cut(count)
            num_settled += settled.num_ids > 0
            assert settled.read(ids[:count], translation) == translation.own(ids[:count])
        if not special:
            text = vocabularies[target].text(ids)
            text = text if vocabularies[target].byte_level else text.removeprefix(" ")
            assert translation.own(ids) == [int(i) for i in whole(text)["input_ids"]], text
            num_long += len(list(translation.own_parts(ids, 0))) > 1
    assert num_settled > 100
    assert num_long > 20


class Counting:
    """A translation that counts the ids which it brings into the draft's tokens."""

    def __init__(self, inner: TokenizerTranslation) -> None:
        self._inner, self.num_ids = inner, 0
        self.begun = inner.begun

    def own_parts(self, ids: Sequence[int], start: int) -> object:
        for num, part in self._inner.own_parts(ids, start):
            self.num_ids += num
            yield num, part


@pytest.mark.parametrize("draft", ["fewer", "sentencepiece"])
def test_work_of_a_round_does_not_grow_with_the_text(vocabularies: dict[str, Vocabulary], draft: str) -> None:
    translation = Counting(TokenizerTranslation(vocabularies["target"], vocabularies[draft]))
    ids = vocabularies["target"].encode("Tom has 12 cards. He buys 3 more. " * 300, True)
    settled, counts = SettledText(), []
    for count in range(5, len(ids), 5):
        translation.num_ids = 0
        settled.read(ids[:count], translation)
        counts.append(translation.num_ids)
    assert len(ids) > 3000
    assert max(counts) < 48 + 2 * 5 + 12, "the last part, up to the next word that begins one"


def test_the_common_prefix() -> None:
    numbers = random.Random(1)
    for _ in range(500):
        one, other = ([numbers.randrange(2) for _ in range(numbers.randrange(9))] for _ in range(2))
        slow = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        assert common_prefix(one, other) == (min(len(one), len(other)) if slow is None else slow)
