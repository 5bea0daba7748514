"""A minimum before which no EOS is emitted, and an EOS that ends nothing: exact, and as in generate()."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import specexp
from helpers.generation import generate, prompts
from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from specexp import config
from specexp.certify.oracle import output_distribution
from specexp.certify.reference_distribution import gap, sequence_distribution
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless, Rule, Suffix
from specexp.decoding.lossy_rules import TopK
from specexp.decoding.protocol import Role, SuffixLimits
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp, without
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import EntropyGate, Fuzzy
from specexp.engine import Decoder, Ending, Engine, Request
from specexp.engine.ending import NO_IDS, End
from specexp.errors import ConfigError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.toy import ToyModel

LENGTH = 32
Pair = Callable[[str], dict[str, HFModel]]


def decoders(warp: Warp) -> dict[str, Decoder]:
    """Every way to a lossless output."""
    return {
        "baseline": Baseline(warp),
        "chain": Chain(DraftModel(2), Lossless(), warp),
        "block": Chain(DraftModel(2), Lossless(), warp, verification="block"),
        "no bonus": Chain(DraftModel(2), Lossless(), warp, bonus=False),
        "lookup": Chain(Lookup(2, max_ngram=2), Lossless(), warp),
        "suffix": Chain(Suffix(2, SuffixLimits(2.0, 0.3)), Lossless(), warp),
        "tree": SpecExec(6, 2, warp, parallel_branches=2),
    }


def toys(vocab: int = 3, seed: int = 3) -> dict[Role, Any]:
    return {"target": ToyModel(vocab, seed), "draft": ToyModel(vocab, seed, draft_noise=0.8)}


@pytest.mark.parametrize("sampling", [SAMPLINGS[2], SAMPLINGS[5]], ids=names)
@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("name", decoders(Warp()))
def test_before_the_minimum_an_eos_has_no_probability_and_after_it_its_own(
    name: str, least: int, sampling: dict[str, Any]
) -> None:
    models = toys()
    decoder, ending = decoders(Warp(**sampling))[name], Ending(least)
    got = output_distribution(lambda: Engine(models, [EOS]), decoder, [1], 4, ending)
    expected = sequence_distribution(models["target"], [1], 4, EOS, least, **sampling)
    assert gap(got, expected) < EXACT
    assert min(map(len, got)) > least
    assert any(output[-1] == EOS for output in got)


@pytest.mark.parametrize("name", ["chain", "tree"])
def test_without_a_cache_it_is_the_same(name: str) -> None:
    models = toys()
    decoder = decoders(Warp(1.0))[name]
    got = output_distribution(lambda: Engine(models, [EOS], cached=False), decoder, [1], 4, Ending(2))
    assert gap(got, sequence_distribution(models["target"], [1], 4, EOS, 2, temperature=1.0)) < EXACT


def test_an_ignored_eos_is_a_token_as_any_other() -> None:
    models = toys()
    for decoder in decoders(Warp(1.0)).values():
        got = output_distribution(lambda: Engine(models, [EOS]), decoder, [1], 3, Ending(ignore_eos=True))
        assert gap(got, sequence_distribution(models["target"], [1], 3, None, temperature=1.0)) < EXACT
        assert {len(output) for output in got} == {3}


def expected(model: HFModel, prompt: list[int], eos: list[int], least: int) -> list[int]:
    """What generate(min_new_tokens=...) emits."""
    with torch.inference_mode():
        ids = model.module.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=LENGTH, min_new_tokens=least or None, eos_token_id=eos, pad_token_id=0,
        )  # fmt: skip
    return [int(i) for i in ids[0, len(prompt) :]]


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # the native forward, and transformers'
def test_greedy_output_equals_generates(pair: Pair, family: str, batch: int) -> None:
    models: Any = pair(family)
    later = moved = 0
    for decoder in decoders(Warp()).values():
        for least in (1, 12):
            for prompt in list(prompts())[1:3]:
                free = generate(models["target"], prompt, LENGTH, None)
                eos = [free[2], free[9]]
                engine = Engine(models, eos, max_batch_size=batch)
                wanted = expected(models["target"], prompt, eos, least)
                request = Request(decoder, prompt, LENGTH, CertainRng(), ending=Ending(least))
                out = dict(engine.generate_all([request] * batch))
                assert [each.token_ids for each in out.values()] == [wanted] * batch
                assert all((each.finish_reason == "stop") == (wanted[-1] in eos) for each in out.values())
                later += len(wanted) > 3
                moved += wanted[:3] != free[:3]
    assert later, "no output was longer than without a minimum"
    assert moved, "no EOS was ever masked"


def test_rows_of_a_batch_have_ends_of_their_own() -> None:
    models = toys(6, 5)
    decoder, eos = Chain(DraftModel(3), Lossless(), Warp(0.8)), [0, 4]
    endings = [Ending(), Ending(4), Ending(9), Ending(ignore_eos=True), Ending(1)]
    requests = [Request(decoder, [1, 2], 12, rng_for(0.8, 3, "p"), ending=each) for each in endings]
    alone = [
        Engine(models, eos).generate(r.decoder, r.prompt_ids, r.max_new_tokens, r.rng, ending=r.ending).token_ids
        for r in requests
    ]
    together = dict(Engine(models, eos, max_batch_size=5).generate_all(requests))
    assert [together[i].token_ids for i in range(5)] == alone
    assert len({tuple(tokens) for tokens in alone}) >= 3
    for tokens, ending in zip(alone, endings, strict=True):
        assert not set(tokens[: ending.min_new_tokens]) & set(eos) or ending.ignore_eos


def test_drafts_have_no_eos_before_the_minimum_either() -> None:
    """A model that wants to end all the time loses no draft to it."""

    class Ending_(ToyModel):  # noqa: N801
        def rows(self, before: Any, tokens: Any, positions: Any) -> tuple[Any, Any]:
            logits, hidden = super().rows(before, tokens, positions)
            return logits + 9.0 * (np.arange(self.vocab_size) == EOS), hidden

    models: dict[Role, Any] = {"target": Ending_(5, 1), "draft": Ending_(5, 1)}
    chain = Chain(DraftModel(4), Lossless(), Warp())
    for least in (13, 15):  # the last token before it is drafted, and is the bonus token
        out = Engine(models, [EOS]).generate(chain, [1], 20, CertainRng(), ending=Ending(least))
        assert (len(out.token_ids), out.finish_reason) == (least + 1, "stop")
        assert out.num_accepted == out.num_drafted
    out = Engine(models, [EOS]).generate(SpecExec(4, 4, Warp(), 1), [1], 20, CertainRng(), ending=Ending(15))
    assert out.token_ids[-1] == EOS
    assert all(tree["num_accepted"] == tree["num_nodes"] for tree in out.trees[:-1])


@pytest.mark.parametrize("rule", [TopK(6), EntropyGate(0.0, Warp()), Fuzzy("tv", 2.0, Warp())], ids=type)
def test_no_rule_accepts_an_eos_that_was_found_before_the_minimum(rule: Rule) -> None:
    decoder, prompt = Chain(Lookup(3, max_ngram=2), rule, Warp()), [1, EOS, 2, 1, EOS, 2, 1]
    engine = Engine(toys(6, 5), [EOS])
    assert engine.generate(decoder, prompt, 16, CertainRng()).token_ids == [EOS], "the rule accepts what it is given"
    out = engine.generate(decoder, prompt, 16, CertainRng(), ending=Ending(9))
    assert EOS not in out.token_ids[:9]
    assert len(out.token_ids) > 9


def test_only_the_rows_and_ids_that_are_banned_are_masked() -> None:
    logits = np.arange(12.0).reshape(3, 4)
    got = without(logits, [NO_IDS, frozenset({0, 3, 99}), NO_IDS])
    assert np.isneginf(got).tolist() == [[False] * 4, [True, False, False, True], [False] * 4]
    assert got[[0, 2]].tolist() == logits[[0, 2]].tolist()
    assert without(logits, [NO_IDS] * 3) is logits
    end = End(frozenset({7}), 3)
    assert [bool(end.banned(position)) for position in range(5)] == [True, True, True, False, False]


def test_the_python_api_takes_both() -> None:
    pair = specexp.load("toy_quick")
    free = pair.generate("hello", "baseline", max_new_tokens=64, temperature=1.0, seed=2)
    assert free.finish_reason == "stop"
    heard: list[str] = []
    for name in ("baseline", "speculative", "specexec"):
        how: dict[str, Any] = {"max_new_tokens": 64, "temperature": 1.0, "seed": 2}
        whole = pair.generate("hello", name, **how, ignore_eos=True, on_text=heard.append)
        assert (len(whole.token_ids), whole.finish_reason) == (64, "length")
        assert 0 in whole.token_ids
        assert "".join(heard) == whole.text == " ".join(map(str, whole.token_ids))
        heard.clear()
        least = pair.generate("hello", name, **how, min_new_tokens=40)
        assert 0 not in least.token_ids[:40]
        assert len(least.token_ids) > 40


@pytest.mark.parametrize(
    "flags,fault",
    [
        ({"min_new_tokens": "-1"}, "min_new_tokens is '-1'; it must be a whole number >= 0 (0 = off)."),
        ({"ignore_eos": "maybe"}, "ignore_eos is 'maybe'; it must be true or false."),
        (
            {"min_new_tokens": "9", "max_new_tokens": "8"},
            "min_new_tokens is 9, but max_new_tokens is 8; lower the first or raise the second.",
        ),
        (
            {"min_new_tokens": "9", "ignore_eos": "true"},
            "min_new_tokens is 9, but with ignore_eos no EOS ends an output; leave one of them out.",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", flags)
    assert error.value.faults == [fault]
    pair = config.resolve("toy_quick")
    with pytest.raises(ConfigError) as error:
        config.adjusted(pair, flags)
    assert error.value.faults == [fault]


def test_they_leave_hashes_of_settings_without_them_alone() -> None:
    plain = config.resolve("arith_quick")
    assert config.resolve("arith_quick", {"min_new_tokens": "0", "ignore_eos": "false"}).hash == plain.hash
    hashes = {config.resolve("arith_quick", each).hash for each in ({"min_new_tokens": "3"}, {"ignore_eos": "True"})}
    assert len(hashes | {plain.hash}) == 3


def test_commands_that_mine_or_train_refuse_them(workplace: Any) -> None:
    (workplace / "mine.yaml").write_text("min_new_tokens: 4\n")
    for resolve, why in (
        (config.resolve_mining, "labels are mined on outputs that end by themselves"),
        (config.resolve_drafter, "a drafter learns from outputs that end by themselves"),
    ):
        with pytest.raises(ConfigError) as error:
            resolve("arith_quick", {"config": "mine.yaml"})
        assert error.value.faults == [f"min_new_tokens is 4, but {why}; leave it out."]
