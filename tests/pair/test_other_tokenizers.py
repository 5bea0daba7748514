"""Drafts with another tokenizer on real folders: translation, equality with plain decoding and generate(), refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from helpers import other_tokenizers
from helpers.cli_runner import evaluate, records
from helpers.model_folders import slow_for
from specexp import config
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless
from specexp.decoding.draft_length import NOMINAL
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.engine.request import Request
from specexp.errors import ConfigError, ModelError
from specexp.lm.hf.source import resolve
from specexp.pair.loading import Pair, load_pair
from specexp.pair.translation import TokenizerTranslation, Vocabulary

KINDS = ("permuted", "fewer", "sentencepiece")
WAYS = ("intersection", "text")
TEXTS = (
    "Tom has 12 cards. He buys 3 more.\nNow he has",
    " a line that begins with a space, and ends with one ",
    "#### 42 ## 3, - A.",
    "naïve café – 日本語 👍\n\n\tend",
    "Anna " * 120,
    "",
)
PROMPT = "Tom has 12 cards. He buys 3 more. How many cards does Tom have now?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("other")
    return {kind: other_tokenizers.save(place / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def vocabularies(folders: dict[str, Path]) -> dict[str, Vocabulary]:
    places = {"target": resolve("zoo:target"), **{kind: str(folder) for kind, folder in folders.items()}}
    tokenizers = {name: AutoTokenizer.from_pretrained(place) for name, place in places.items()}
    return {name: Vocabulary(each, [each.eos_token_id]) for name, each in tokenizers.items()}


def pair_of(folders: Mapping[str, Path], kind: str, way: str, methods: str = "speculative") -> Pair:
    draft = {"model": str(folders[kind]), "vocabulary": way}
    return load_pair(config.resolve("arith_quick", {"draft": draft, "methods": methods}), {"target", "draft"})


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[tuple[str, str], Pair]:
    return {(kind, way): pair_of(folders, kind, way) for kind in KINDS for way in WAYS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_the_same_in_the_drafts_tokens(vocabularies: dict[str, Vocabulary], kind: str, text: str) -> None:
    target, draft = vocabularies["target"], vocabularies[kind]
    translation = TokenizerTranslation(target, draft)
    ids = [int(i) for i in target.tokenizer(text)["input_ids"]]
    for count in range(1, len(ids) + 1):
        own = translation.own(ids[:count])
        assert own[0] == draft.tokenizer.bos_token_id
        assert all(token not in draft.special for token in own[1:])
        written = draft.text(own[1:])
        read = target.text(ids[1:count])
        assert written == read if kind != "sentencepiece" else written.lstrip(" ") == read.lstrip(" ")
    assert translation.own(ids) == [int(i) for i in draft.tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_common_has_the_same_text(vocabularies: dict[str, Vocabulary], kind: str) -> None:
    target, draft = vocabularies["target"], vocabularies[kind]
    translation = TokenizerTranslation(target, draft, suppressed=[target.by_bytes[b" cards"]])
    common = [(token, own) for token, own in enumerate(translation.common) if own >= 0]
    assert {"permuted": 591, "fewer": 531, "sentencepiece": 531}[kind] == len(common)
    for token, own in common:
        assert target.bytes[token] == draft.bytes[own]
        assert target.special.get(token) == draft.special.get(own)
    assert translation.common[target.tokenizer.eos_token_id] == draft.tokenizer.eos_token_id
    assert translation.common[target.by_bytes[b" cards"]] == -1, "the target never emits it"


class Sketch:
    """A tokenizer of which only the vocabulary matters."""

    added_tokens_decoder: Mapping[int, Any] = {}

    def __init__(self, names: list[str], special: list[str], end: str) -> None:
        self._names = names
        self.all_special_ids = [names.index(name) for name in special]
        self.eos_token_id, self.bos_token_id = names.index(end), None

    def get_vocab(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self._names)}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [self._names.index("a")]}


def test_tokens_of_one_text_and_several_ends() -> None:
    """Byte tokens come first in sentencepiece's vocabularies; `##` is text there; ends are matched one to one."""
    one = Sketch(["<0x23>", "<0x61>", "#", "###", "▁a", "a", "</s>", "<end>", "<pad>"], ["</s>", "<end>"], "</s>")
    other = Sketch(["Ġa", "Ġb", "#", "###", "a", "<stop>", "<end>", "<eom>"], ["<stop>", "<end>", "<eom>"], "<stop>")
    sentencepiece, byte_level = Vocabulary(one, [6, 7]), Vocabulary(other, [5, 6, 7])
    assert [sentencepiece.bytes[i] for i in (0, 2, 3)] == [b"#", b"#", b"###"]
    assert TokenizerTranslation(sentencepiece, byte_level).common == [-1, -1, 2, 3, 0, 4, 5, 6, -1]
    assert TokenizerTranslation(byte_level, sentencepiece).common == [4, -1, 2, 3, 5, 6, 7, -1]
    assert TokenizerTranslation(byte_level, sentencepiece).continued([], [5, 6]) == [4, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_the_draft_writes_becomes_whole_tokens(vocabularies: dict[str, Vocabulary], kind: str) -> None:
    target, draft = vocabularies["target"], vocabularies[kind]
    translation = TokenizerTranslation(target, draft)
    ids = target.encode("He buys", True)
    own, end = draft.encode(" 3 more cards", False), draft.tokenizer.eos_token_id
    names = target.tokenizer.convert_ids_to_tokens
    assert names(translation.continued(ids, own)) == ["Ġ", "3", "Ġmore"], "the last one may go on"
    assert names(translation.continued(ids, [*own, end])) == ["Ġ", "3", "Ġmore", "Ġcards", "<|eos|>"]
    assert names(translation.continued(ids, [*own, end, *own]))[-1] == "<|eos|>"
    assert translation.ends(end)
    pad = draft.tokenizer.pad_token_id
    assert names(translation.continued(ids, [*own, pad]))[-1] == "<|pad|>"
    assert translation.continued(ids, []) == []
    half = draft.encode("é", False)[:1]  # the first byte of two
    assert names(translation.continued(ids, [*own, *half])) == ["Ġ", "3", "Ġmore"]


def reference(pair: Pair, draft: Any, prompt: list[int], length: int, gamma: int) -> tuple[list[int], list[int]]:
    """Greedy speculation by whole forwards without any cache: the output, and how many drafts each round accepted."""
    target, own, translation = pair.models["target"], draft.inner, draft.translation
    ids, accepted = list(prompt), []
    while len(ids) < len(prompt) + length:
        context, drafted = translation.own(ids), []
        for _ in range(min(gamma, len(prompt) + length - len(ids) - 1)):
            logits, _ = own.session().feed(own.ids(context), 1)
            row = torch.full((len(translation.common),), float("-inf"))
            for token, mine in enumerate(translation.common):
                if mine >= 0:
                    row[token] = logits[0, mine]
            drafted.append(int(row.argmax()))
            context.append(translation.common[drafted[-1]])
        logits, _ = target.session().feed(target.ids([*ids, *drafted]), len(drafted) + 1)
        best = [int(i) for i in logits.argmax(-1)]
        count = next((i for i, token in enumerate(drafted) if token != best[i]), len(drafted))
        accepted.append(count)
        ids += best[: count + 1]
    return ids[len(prompt) :], accepted


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_over_common_tokens_are_those_of_whole_forwards(pairs: Any, kind: str) -> None:
    pair = pairs[kind, "intersection"]
    prompt = pair.text.encode([{"role": "user", "content": PROMPT}])
    expected, accepted = reference(pair, pair.models["draft"], prompt, 40, 4)
    for cached in (True, False):
        engine = Engine(pair.models, cached=cached)
        out = engine.generate(Chain(DraftModel(4), Lossless(), Warp()), prompt, 40, CertainRng())
        assert out.token_ids == expected
        assert [out.accepted_histogram[n] for n in range(5)] == [accepted.count(n) for n in range(5)]
    assert sum(accepted) > 15


@pytest.mark.at_most(fast=1, slow=2)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", slow_for(KINDS, "permuted", "fewer"))
def test_outputs_are_plain_decodings(pairs: Any, kind: str, way: str, temperature: float) -> None:
    """Of a draft that writes text also the sampled ones, seed by seed; alone, together, and without a cache."""
    pair, warp = pairs[kind, way], Warp(temperature, top_p=0.95)
    given = [pair.text.encode([{"role": "user", "content": text}]) for text in (PROMPT, "Anna: é 日本", "2 and 3")]
    chain = Chain(DraftModel(5), Lossless(), warp, verification="match" if way == "text" else "token")
    turns = Chain(InTurn({"lookup": Lookup(3, 4, 3), "draft": DraftModel(3)}), Lossless(), warp,
                  verification=chain.verification)  # fmt: skip
    alone = {}
    decoders = {"plain": Baseline(warp), "chain": chain, "turns": turns}
    if way == "intersection":
        decoders["adapts"] = Chain(DraftModel(8, costs=NOMINAL), Lossless(), warp)
    for name, decoder in decoders.items():
        engine = Engine(pair.models, pair.eos_ids)
        alone[name] = [engine.generate(decoder, p, 30, rng_for(temperature, 1, str(i))) for i, p in enumerate(given)]
        requests = [Request(decoder, p, 30, rng_for(temperature, 1, str(i))) for i, p in enumerate(given)]
        together = dict(Engine(pair.models, pair.eos_ids, max_batch_size=2).generate_all(requests))
        assert [together[i].token_ids for i in range(3)] == [out.token_ids for out in alone[name]]
        assert [together[i].num_accepted for i in range(3)] == [out.num_accepted for out in alone[name]]
    if way == "text" or not temperature:
        assert [out.token_ids for out in alone["chain"]] == [out.token_ids for out in alone["plain"]]
        assert [out.token_ids for out in alone["turns"]] == [out.token_ids for out in alone["plain"]]
        if way == "intersection":
            assert [out.token_ids for out in alone["adapts"]] == [out.token_ids for out in alone["plain"]]
    assert sum(out.num_accepted for out in alone["chain"]) > 10
    uncached = Engine(pair.models, pair.eos_ids, cached=False)
    for i, prompt in enumerate(given):
        out = uncached.generate(chain, prompt, 30, rng_for(temperature, 1, str(i)))
        assert out.token_ids == alone["chain"][i].token_ids
        if way == "intersection":
            assert out.accepted_histogram == alone["chain"][i].accepted_histogram


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_given_text_are_those_behind_the_text_in_the_drafts_tokens(pairs: Any, kind: str) -> None:
    pair = pairs[kind, "intersection"]
    draft: Any = pair.models["draft"]
    prompt = pair.text.encode([{"role": "user", "content": "Anna: é"}])
    text = pair.text.tokenizer("日 Tom has 12 cards.", add_special_tokens=False)["input_ids"]
    for reuse in (True, False):
        rows, _ = Engine(pair.models, reuse=reuse).score("draft", prompt, text)
        for count in range(len(text) + 1):
            own = draft.translation.own([*prompt, *text[:count]])
            logits, _ = draft.inner.session().feed(draft.ids(own), 1)
            common = [i for i, mine in enumerate(draft.translation.common) if mine >= 0]
            mine = [draft.translation.common[i] for i in common]
            assert torch.allclose(rows[count, common], logits[0, mine], atol=2e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_request_begins_with_an_empty_cache(pairs: Any, way: str) -> None:
    pair = pairs["fewer", way]
    prompt = pair.text.encode([{"role": "user", "content": PROMPT}])
    engine, chain = Engine(pair.models, pair.eos_ids), Chain(DraftModel(4), Lossless(), Warp())
    fed: list[int] = []
    session: Any = engine._context("draft", 0, 40).session
    inner = session.inner.feed

    def feed(tokens: Any, *more: Any) -> Any:
        fed.append(tokens.shape[0])
        return inner(tokens, *more)

    session.inner = SimpleNamespace(feed=feed, truncate=session.inner.truncate, length=0, slots=session.inner.slots)
    draft: Any = pair.models["draft"]
    for _ in range(2):
        fed.clear()
        engine._begin(0, Request(chain, prompt, 8, CertainRng()))
        assert fed == [len(draft.translation.own(prompt[:-1]))]


@pytest.mark.parametrize("kind", KINDS)
def test_trees_grow_over_common_tokens(pairs: Any, kind: str) -> None:
    pair = pairs[kind, "intersection"]
    prompt = pair.text.encode([{"role": "user", "content": PROMPT}])
    engine = Engine(pair.models, pair.eos_ids)
    plain = engine.generate(Baseline(Warp()), prompt, 40, CertainRng())
    tree = engine.generate(SpecExec(12, 4, Warp(), 3), prompt, 40, CertainRng())
    assert tree.token_ids == plain.token_ids
    uncached = Engine(pair.models, pair.eos_ids, cached=False)
    assert uncached.generate(SpecExec(12, 4, Warp(), 3), prompt, 40, CertainRng()).trees == tree.trees
    assert tree.num_accepted > tree.num_rounds


def test_what_was_written_behind_a_whole_token_is_not_written_again(pairs: Any) -> None:
    """With other ids alone, the text of a round is split as the draft split it: one token goes over to the next."""
    pair = pairs["permuted", "text"]
    prompt = pair.text.encode([{"role": "user", "content": PROMPT}])
    engine = Engine(pair.models, pair.eos_ids)
    out = engine.generate(Chain(DraftModel(4), Lossless(), Warp()), prompt, 40, CertainRng())
    full = out.num_full
    assert full > 2
    assert out.num_draft_calls <= 5 * out.num_rounds - full + 4, "after a full acceptance one token is there already"
    assert engine.num_host_reads <= 2 * out.num_rounds, "a round reads what was written, and what was accepted"


def test_a_drafts_context_ends_in_its_own_tokens(folders: dict[str, Path], pairs: Any) -> None:
    for way in WAYS:
        pair = pairs["fewer", way]
        draft: Any = pair.models["draft"]
        prompt = pair.text.encode([{"role": "user", "content": PROMPT}])
        had, draft.inner.context = draft.inner.context, len(draft.translation.own(prompt)) + 9
        try:
            engine = Engine(pair.models)
            out = engine.generate(Chain(DraftModel(4), Lossless(), Warp()), prompt, 40, CertainRng())
            plain = engine.generate(Baseline(Warp()), prompt, 40, CertainRng())
            assert out.token_ids == plain.token_ids
            assert 0 < out.num_drafted < 20
            assert out.num_rounds > 25, "plain steps, once nothing fits"
        finally:
            draft.inner.context = had


def test_the_way_is_chosen_by_the_methods_or_by_a_trial(folders: dict[str, Path]) -> None:
    for methods, way in (("specexec", "intersection"), ("speculative,topk", "intersection")):
        pair = pair_of(folders, "fewer", "auto", methods)
        assert pair.vocabulary == way
        assert pair.notes[-1] == (
            "the draft has another tokenizer: 532 of 592 tokens are common; vocabulary intersection is used."
        )
    pair = pair_of(folders, "fewer", "auto", "baseline,speculative")
    assert "tokens a call in a short trial: intersection " in pair.notes[-1]
    assert pair.vocabulary in WAYS
    assert pair_of(folders, "permuted", "text").vocabulary == "text"
    same = load_pair(config.resolve("arith_quick", {}), {"target", "draft"})
    assert same.vocabulary == "same"


class WeightsAreRead(Exception):
    """Raised by tests where weights would be read."""


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*given: Any, **more: Any) -> None:
        raise WeightsAreRead

    monkeypatch.setattr("specexp.lm.hf.loading.load_model", read)


def test_what_tokenizers_tell_is_told_before_weights_are_read(
    folders: dict[str, Path], no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsAreRead):
        pair_of(folders, "fewer", "auto")
    with pytest.raises(ModelError, match="method 'draft_only' does not take a draft"):
        pair_of(folders, "fewer", "auto", "draft_only")
    monkeypatch.setattr(TokenizerTranslation, "_same", lambda self, token: -1)
    for way, methods in (("intersection", "speculative"), ("auto", "specexec"), ("auto", "speculative,topk")):
        with pytest.raises(ModelError, match="no token is common to the target and the draft"):
            pair_of(folders, "fewer", way, methods)
    with pytest.raises(WeightsAreRead):
        pair_of(folders, "fewer", "auto")


def test_where_tokenizers_decide_there_is_no_trial(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens under other ids, no token in common, or methods that take one way only."""
    monkeypatch.setattr("specexp.pair.other_tokenizers.Engine", None)
    assert pair_of(folders, "permuted", "auto").vocabulary == "intersection"
    assert pair_of(folders, "fewer", "auto", "specexec").vocabulary == "intersection"
    with pytest.raises(TypeError):
        pair_of(folders, "fewer", "auto")
    monkeypatch.setattr(TokenizerTranslation, "_same", lambda self, token: -1)
    assert pair_of(folders, "fewer", "auto").vocabulary == "text"


REFUSED = [
    ("text", "specexec", "method 'specexec' does not take a draft with vocabulary text, but same or intersection;"),
    ("text", "draft_only", "method 'draft_only' does not take a draft with vocabulary text, but same;"),
    ("intersection", "draft_only", "method 'draft_only' does not take a draft with vocabulary intersection, but same;"),
    ("text", "speculative_block", "rule of 'speculative_block' is block, but a draft with vocabulary text is not"),
]


@pytest.mark.parametrize(("way", "method", "message"), REFUSED)
def test_methods_that_do_not_take_such_a_draft(way: str, method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.resolve("arith_quick", {"draft": {"model": "x", "vocabulary": way}, "methods": method})


def test_refusals_that_need_the_tokenizers(folders: dict[str, Path]) -> None:
    for way, method, message in (
        ("same", "speculative", r"target and draft do not share a tokenizer: \d+ tokens differ"),
        ("auto", "draft_only", "target and draft do not share a tokenizer: method 'draft_only' does not take a draft"),
    ):
        with pytest.raises(ModelError, match=message):
            pair_of(folders, "fewer", way, method)
    with pytest.raises(ConfigError, match="target: vocabulary is a draft's setting"):
        config.resolve("arith_quick", {"target": {"model": "x", "vocabulary": "text"}})


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_evaluation(workplace: Path, folders: dict[str, Path], way: str) -> None:
    more = ", topk, specexec" if way == "intersection" else ""
    Path("own.yaml").write_text(
        f"draft: {{model: '{folders['sentencepiece']}', vocabulary: {way}}}\n"
        f"methods: [baseline, speculative, chained{more}]\n"
    )
    result = evaluate("--experiment", "arith_quick", "--limit", "3", "--config", "own.yaml", "--output", "out")
    assert result.exit_code == 0, result.output
    assert "532 of 592 tokens are common" in result.output
    outputs = {(r["prompt_id"], r["label"]): r["token_ids"] for r in records(Path("out"))}
    for (prompt, label), tokens in outputs.items():
        assert label == "topk" or tokens == outputs[prompt, "baseline"]
    assert Path("out/tokens.html").is_file()
