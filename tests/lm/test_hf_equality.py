"""Greedy decoding of real model folders equals transformers' generate(), token for token, in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.generation import LENGTH, generate, prompts
from helpers.model_folders import FAMILIES, build, slow_for
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine, Generation
from specexp.errors import ModelError
from specexp.lm.hf.hf_model import HFModel

GREEDY = Warp()
DECODERS: dict[str, Decoder] = {
    "baseline": Baseline(GREEDY),
    **{f"gamma {g}": Chain(DraftModel(g), Lossless(), GREEDY) for g in (1, 4, 9)},
    "gamma 4, no bonus": Chain(DraftModel(4), Lossless(), GREEDY, bonus=False),
}
Pair = Callable[[str], dict[str, HFModel]]


@pytest.mark.at_most(fast=16, slow=12)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_equals_generate(pair: Pair, family: str, decoder: str) -> None:
    models = pair(family)
    engine = Engine(models)
    accepted = 0
    for prompt in prompts():
        out = engine.generate(DECODERS[decoder], prompt, LENGTH, CertainRng())
        assert out.token_ids == generate(models["target"], prompt, LENGTH, None)
        assert out.finish_reason == "length"
        accepted += out.num_accepted
    if decoder != "baseline":
        assert accepted > 0, "no draft was ever accepted: the test says little"


@pytest.mark.at_most(fast=3)
@pytest.mark.parametrize("family", slow_for(FAMILIES, "gpt_oss"))
def test_the_cache_changes_nothing(pair: Pair, family: str) -> None:
    models = pair(family)
    for decoder in DECODERS.values():
        for prompt in ([7], [5, 9, 11, 40]):
            with_cache = Engine(models).generate(decoder, prompt, 24, CertainRng())
            without = Engine(models, cached=False).generate(decoder, prompt, 24, CertainRng())
            assert with_cache.token_ids == without.token_ids == generate(models["target"], prompt, 24, None)
            assert with_cache.accepted_histogram == without.accepted_histogram


@pytest.mark.at_most(slow=4)
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_eos_inside_an_accepted_block_ends_the_output_there(pair: Pair, family: str) -> None:
    models = pair(family)
    inside = 0
    for prompt in prompts():
        free = generate(models["target"], prompt, LENGTH, None)
        for place in range(2, 24, 3):
            eos = [free[place]]
            out = Engine(models, eos).generate(DECODERS["gamma 9"], prompt, LENGTH, CertainRng())
            assert out.token_ids == generate(models["target"], prompt, LENGTH, eos)
            assert out.finish_reason == "stop"
            assert out.token_ids[-1:] == eos
            inside += out.num_cut > 0
    assert inside > 0, "no EOS ever fell inside a block: the test says little"


@pytest.mark.parametrize("family", slow_for(FAMILIES, "gpt_oss"))
def test_a_limit_inside_a_block_is_met_exactly(pair: Pair, family: str) -> None:
    models = pair(family)
    whole = generate(models["target"], [5, 9, 11], 20, None)
    for limit in range(1, 21):
        out = Engine(models).generate(DECODERS["gamma 9"], [5, 9, 11], limit, CertainRng())
        assert out.token_ids == whole[:limit]
        assert out.num_cut == 0, "a chain is trimmed to what is left, not cut"


def test_a_prompt_reuses_caches_across_runs_without_changing_the_answer(pair: Pair) -> None:
    models = pair("llama")
    kept = Engine(models, reuse=True)
    for prompt in ([4, 5, 6, 7, 8], [4, 5, 6, 9], [4, 5, 6, 7, 8, 10, 11], [30]):
        out = kept.generate(DECODERS["gamma 4"], prompt, 20, CertainRng())
        assert out.token_ids == generate(models["target"], prompt, 20, None)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_prompt_and_seed_give_the_same_tokens_whatever_ran_before(pair: Pair, temperature: float) -> None:
    models = pair("llama")
    decoder = Chain(DraftModel(4), Lossless(), Warp(temperature, top_p=0.95))
    alone = Engine(models).generate(decoder, [9, 8, 7], 32, rng_for(temperature, 5, "p"))
    for reuse in (False, True):
        busy = Engine(models, reuse=reuse)
        for other in ([1, 2, 3], [9, 8, 6, 5]):
            busy.generate(decoder, other, 12, rng_for(temperature, 5, "other"))
        assert busy.generate(decoder, [9, 8, 7], 32, rng_for(temperature, 5, "p")).token_ids == alone.token_ids


def test_counts_of_a_chain(pair: Pair) -> None:
    """gamma draft forwards and one target forward a round; the draft takes two tokens after a full acceptance."""
    models = pair("llama")
    same = {"target": models["target"], "draft": models["target"]}
    engine = Engine(same)
    out: Generation = engine.generate(DECODERS["gamma 4"], [5, 6, 7], 50, CertainRng())
    assert (out.num_rounds, out.num_accepted, out.num_full) == (10, 40, 10)
    assert (out.num_target_calls, out.num_target_positions) == (10, 10 * 5)
    assert (out.num_draft_calls, out.num_draft_positions) == (40, 4 + 9 * 5)
    assert engine.num_host_reads == out.num_rounds, "one host synchronisation a round"


def test_drafting_ends_where_the_drafts_context_ends(pair: Pair) -> None:
    target = pair("llama")["target"]
    short = HFModel(build("llama", max_position_embeddings=20), "short")
    for prompt in ([5] * 4, [5] * 25):  # the second prompt does not even fit the draft
        out = Engine({"target": target, "draft": short}).generate(DECODERS["gamma 4"], prompt, 40, CertainRng())
        assert out.token_ids == generate(target, prompt, 40, None)


def test_the_targets_context_bounds_the_output(pair: Pair) -> None:
    target = pair("gpt2")["target"]  # learned positions: one too many would crash
    out = Engine({"target": target}).generate(Baseline(GREEDY), [5] * 150, 40, CertainRng())
    assert len(out.token_ids) == 10
    assert out.finish_reason == "context"


def test_a_model_that_cannot_decode_is_refused_by_name() -> None:
    import transformers

    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ModelError, match=r"model 'tiny' \(bert\) is an encoder"):
        HFModel(transformers.BertLMHeadModel(config), "tiny")


def test_hidden_rows_are_the_last_layer_after_its_norm(pair: Pair) -> None:
    model: Any = pair("llama")["target"]
    session = model.session()
    logits, hidden = session.feed(model.ids([4, 5, 6]), rows=2, hidden=True)
    assert hidden is not None
    with torch.inference_mode():
        again = model.module.get_output_embeddings()(hidden)
    assert torch.allclose(again, logits, atol=1e-5)
