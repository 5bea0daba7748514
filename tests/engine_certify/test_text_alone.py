"""Servers that give text alone: no false alarm where a text is several tokens', and the checks that follow texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from helpers.transformers_serve import TARGET
from specexp.certify import chi_square
from specexp.engine_certify import divergences, greedy_checks, next_tokens, request_checks, stability_checks
from specexp.engine_certify.divergences import NEAR_TIE, UNTOLD
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject
from specexp.engine_certify.greedy_checks import GreedyOutputs
from specexp.engine_certify.next_tokens import Warping
from specexp.engine_certify.sampled_places import SampledPlace, SampledTarget, moved_by_text, target_of
from specexp.engine_certify.served_output import ServedOutput, tokens_of
from specexp.evaluation.equality import noise_of
from specexp.pair.tokenization import TokenizerText

PROMPT, EOS = "How many", 1
NOT, MANY = " now", " pencils"


class Scripted:
    """A model whose likeliest token at each place is that of a script, by a distance; `others` are as likely as it."""

    def __init__(self, script: Sequence[int], prompt: int, others: dict[int, int] | None = None) -> None:
        self.script, self.prompt, self.others = list(script), prompt, others or {}
        self.length = 0

    def session(self) -> Scripted:
        return Scripted(self.script, self.prompt, self.others)

    def ids(self, tokens: Sequence[int]) -> list[int]:
        return list(tokens)

    def feed(self, tokens: Sequence[int], rows: int) -> tuple[Any, None]:
        self.length += len(tokens)
        result = np.zeros((rows, 600))
        for row in range(rows):
            at = self.length - rows + row + 1 - self.prompt
            result[row, self.script[at]] = 20.0
            if at in self.others:
                result[row, self.others[at]] = 20.0 - 1e-6
        return result, None


@pytest.fixture(scope="module")
def text() -> TokenizerText:
    return TokenizerText(AutoTokenizer.from_pretrained(TARGET), chat=False)


def pieces(text: TokenizerText, *words: str) -> list[int]:
    """The ids of words that are one token each."""
    result = [text.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert all(len(ids) == 1 for ids in result), words
    return [ids[0] for ids in result]


def apart(text: TokenizerText) -> list[int]:
    """ " pencils" as three tokens, which no tokenizer makes of it, then a full stop and the end."""
    return [*pieces(text, " ", "p", "e", "n", "c", "i", "l", "s", "."), EOS]


def subject_of(text: TokenizerText, script: Sequence[int], others: dict[int, int] | None = None) -> EngineSubject:
    example = SimpleNamespace(prompt_id="p0", messages=lambda: [{"role": "user", "content": PROMPT}])
    prompts = [text.encode([{"role": "user", "content": PROMPT}])]
    pair = SimpleNamespace(text=text, eos_ids=[EOS], models={"target": Scripted(script, len(prompts[0]), others)})
    experiment = SimpleNamespace(max_new_tokens=16, temperature=1.0)
    prepared: Any = SimpleNamespace(pair=pair, prompts=prompts, examples=[example], experiment=experiment)
    config: Any = SimpleNamespace(weights=True, dtype="float32")
    engine: Any = SimpleNamespace(offer=SimpleNamespace(token_ids=False), role="engine", name="engine:e", by_ids=False)
    journal: Any = None
    return EngineSubject(config, prepared, engine, None, journal)


def output_of(subject: EngineSubject, tokens: Sequence[int], ended: bool = True) -> ServedOutput:
    """What a server with text alone gives of these tokens."""
    said = subject.prepared.pair.text.decode(list(tokens))
    ids = [*subject.split(0, (), said), *([EOS] if ended else [])]
    return ServedOutput(said, tuple(ids), ended, len(tokens), split=True)


def checked(subject: EngineSubject, output: ServedOutput) -> Any:
    return greedy_checks.check_weights(subject, GreedyOutputs([output], None))


def test_greedy_tokens_that_a_tokenizer_would_join_are_no_divergence(text: TokenizerText) -> None:
    tokens = apart(text)
    subject = subject_of(text, tokens)
    output = output_of(subject, tokens)
    assert output.text == " pencils."
    assert output.tokens != tuple(tokens)
    check = checked(subject, output)
    assert (check.verdict, check.numbers["equal"]) == ("passed", 1)


def test_another_text_is_one_though_its_tokens_are_not_known(text: TokenizerText) -> None:
    tokens = apart(text)
    subject = subject_of(text, tokens)
    for other in ([*tokens[:-2], *pieces(text, NOT), EOS], [*tokens[:-2], EOS], [*tokens[:-1], tokens[-2], EOS]):
        check = checked(subject, output_of(subject, other))
        assert check.verdict == "failed", other
        assert "1 divergence not rounding" in check.sentence
        assert "character" in check.sentence


def test_an_end_that_comes_too_early_is_seen_where_a_server_does_not_count_it(text: TokenizerText) -> None:
    tokens = apart(text)
    subject = subject_of(text, tokens)
    whole = replace(output_of(subject, tokens), num_tokens=len(tokens) - 1)
    assert checked(subject, whole).verdict == "passed"
    early = output_of(subject, [*tokens[:-2], EOS])
    check = checked(subject, replace(early, num_tokens=len(tokens) - 2))
    assert check.verdict == "failed"
    assert "character 8" in check.sentence


def test_a_text_may_go_on_with_a_token_that_rounding_puts_first(text: TokenizerText) -> None:
    tokens = apart(text)
    (now,) = pieces(text, NOT)
    subject = subject_of(text, tokens, {8: now})
    (found,) = divergences.forced_text(
        subject, subject.prepared.pair.models["target"], 0, output_of(subject, [*tokens[:8], now, EOS])
    )
    assert (found.kind, found.position, found.token, found.expected) == (NEAR_TIE, 8, now, tokens[8])
    assert noise_of("float32", np.asarray([20.0])) > 1e-6


def test_equal_texts_are_equal_and_texts_that_part_in_a_token_cannot_be_told(text: TokenizerText) -> None:
    tokens = apart(text)
    subject = subject_of(text, tokens)
    joined = output_of(subject, tokens)
    assert divergences.between(subject, 0, joined, ServedOutput(joined.text, tuple(tokens), True, 10)) is None
    begun = output_of(subject, tokens[:3], ended=False)
    found = divergences.between(subject, 0, begun, joined)
    assert found is not None
    assert found.kind == UNTOLD, "' pe' and ' pencils' may be the same tokens"
    (now,) = pieces(text, NOT)
    found = divergences.between(subject, 0, output_of(subject, [now]), joined)
    assert found is not None
    assert found.kind == NEAR_TIE, "by the weights, which put neither first"


def test_a_forced_token_is_seen_by_its_text(text: TokenizerText) -> None:
    subject = subject_of(text, apart(text))
    (pencils,) = pieces(text, MANY)
    answer = ServedOutput(" pencils", tuple(apart(text)[:8]), False, 1, split=True)
    assert request_checks.came(subject, answer, pencils)
    assert not request_checks.came(subject, answer, pieces(text, NOT)[0])
    assert request_checks.came(subject, ServedOutput("", (pencils,), False, 1), pencils)


def test_a_text_after_a_part_of_an_output_is_split_with_it(text: TokenizerText) -> None:
    subject = subject_of(text, apart(text))
    whole = subject.split(0, (), " pencils now.")
    assert tokens_of(subject.prepared, 0, tuple(whole[:1]), " now.") == whole[1:]


def test_a_text_within_a_word_is_split_without_the_space_that_begins_texts() -> None:
    """As SentencePiece does: a space before the whole text, and none where an output goes on."""
    signs = Tokenizer(BPE({sign: place for place, sign in enumerate("\u2581Howmanysi.")}, []))
    signs.pre_tokenizer, signs.decoder = Metaspace(), decoders.Metaspace()
    text = TokenizerText(PreTrainedTokenizerFast(tokenizer_object=signs), chat=False)
    subject = subject_of(text, [EOS])
    assert text.tokenizer.tokenize("i.") == ["\u2581", "i", "."]
    s, i, stop = text.tokenizer.convert_tokens_to_ids(["s", "i", "."])
    assert tokens_of(subject.prepared, 0, (s,), "i.") == [i, stop]


def place_of(subject: EngineSubject, first: dict[int, float]) -> SampledPlace:
    """A place at which these tokens come first, and the same ones after each."""
    logits = np.full(600, -np.inf)
    for token, share in first.items():
        logits[token] = np.log(share)
    row = next_tokens.NextTokens(logits)
    return SampledPlace(0, (), lambda prefix: row)


def test_the_share_of_outputs_that_are_split_otherwise_decides_where_texts_are_sampled(text: TokenizerText) -> None:
    subject = subject_of(text, apart(text))
    pencils, now, one, more = (*pieces(text, MANY, NOT), *pieces(text, " ", "p"))
    whole = place_of(subject, {pencils: 0.5, now: 0.5})
    assert moved_by_text(subject, whole, Warping()) == 0
    target = target_of(subject, whole, Warping())
    assert target is not None
    assert target.tells(10**6)
    parts = place_of(subject, {now: 0.6, one: 0.2, more: 0.2})  # " " and "p" after each other are other tokens
    moved = moved_by_text(subject, parts, Warping())
    assert moved > 0.04
    target = target_of(subject, parts, Warping())
    assert target is not None
    assert not target.tells(1000)
    cells = chi_square.split(lambda prefix: np.asarray([0.5, 0.3, *[0.04] * 5]), 1, (), 100)
    assert SampledTarget(whole, Warping(), cells, 0.001).tells(1000)
    assert not SampledTarget(whole, Warping(), cells, 0.02).tells(1000)
    rare = chi_square.split(lambda prefix: np.asarray([0.5, 0.4999, 0.0001]), 1, (), 100)
    assert not SampledTarget(whole, Warping(), rare, 0.0001).tells(100), "one output in a rare cell shows"


def test_load_is_judged_by_texts(text: TokenizerText, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(text, apart(text))
    outputs = output_of(subject, apart(text))
    again = ServedOutput(outputs.text, tuple(apart(text)), True, 10)
    asked: list[EngineRequest] = []

    def ask(self: EngineSubject, engine: Any, requests: Sequence[EngineRequest], *more: Any) -> list[ServedOutput]:
        asked.extend(requests)
        return [again for _ in requests]

    monkeypatch.setattr(EngineSubject, "ask", ask)
    check = stability_checks.check_repeat(subject, GreedyOutputs([outputs], None), lambda: None)
    assert (check.verdict, len(asked)) == ("passed", stability_checks.TIMES)
