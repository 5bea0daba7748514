"""DFlash drafts: blocks are transformers' own candidates, outputs are generate()'s, and one forward drafts a chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DFlashCache
from transformers.generation.candidate_generator import DFlashTokenCandidateGenerator

from helpers import tiny_models
from helpers.chain_heads import AUTHORS, SPECULATORS, config_of, dflash_folder, in_layout
from helpers.drafted_chains import GREEDY, candidates, greedy_chains, outputs_equal_generate, watch_chains
from helpers.generation import prompts
from helpers.model_folders import slow_for
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.lossy_rules import TopK
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.untrained_rules import EntropyGate, Fuzzy
from specexp.engine import Ending, Engine
from specexp.errors import ModelError
from specexp.lm.heads import dflash_config
from specexp.lm.heads.loading import check_head, load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.runtime import ModelConfig

# On the native forward; on transformers' own; with a recurrent state.
FAMILIES = ["llama", "gpt2", "qwen3_next"]
LAYOUTS = [AUTHORS, SPECULATORS]  # of a draft for a Llama
LENGTH, BLOCK = 24, 5


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Any, Any]]:
    result = {}
    for kind in (*FAMILIES, *LAYOUTS):
        target = HFModel(tiny_models.build("llama" if kind in LAYOUTS else kind), kind, graphs="off")
        folder = dflash_folder(tmp_path_factory.mktemp(kind), [0, 1])
        if kind in LAYOUTS:
            in_layout(folder, kind)
        result[kind] = {"target": target, "draft": load_head(ModelConfig(kind, dflash=str(folder)), target)}
    return result


@pytest.fixture
def models(everything: dict[str, dict[Any, Any]], kind: str) -> dict[Any, Any]:
    return everything[kind]


def states_of(target: HFModel, ids: list[int]) -> Tensor:
    """[1, N, 2 D]: what the block reads of a text, by transformers' own forward."""
    with torch.inference_mode():
        seen = target.module(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.cat([seen[1], seen[2]], dim=-1)


def whole_block(models: dict[Any, Any], ids: list[int]) -> Tensor:
    """The logits [B - 1, V] after a text, without a cache."""
    target, module, before = models["target"], models["draft"].module, len(ids) - 1
    cache = DFlashCache()
    cache.set_previous_accepted_tokens(before)
    block = torch.tensor([[ids[-1], *[module.config.mask_token_id] * (BLOCK - 1)]])
    states = states_of(target, ids)[:, :before]
    with torch.inference_mode():
        x = module(
            noise_embeds=target.module.get_input_embeddings()(block), context_hidden_states=states,
            position_ids=torch.arange(before + BLOCK)[None], past_key_values=cache,
        ).last_hidden_state  # fmt: skip
        return target.as_logits(target.module.get_output_embeddings()(x[0, 1:]))


@pytest.mark.at_most(fast=1, slow=2)
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", slow_for(FAMILIES, "qwen3_next"))
def test_rows_are_those_of_a_block_without_a_cache(
    models: dict[Any, Any], kind: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    warp, seen = Warp(0.8), watch_chains(monkeypatch)
    least, early = 0.03, 0
    for prompt in ([7], [5, 9], [5, 20, 33, 41, 8, 15, 70, 3, 60]):
        for decoder in (
            Chain(DraftModel(4), Lossless(), warp),
            Chain(DraftModel(3), Lossless(), warp, verification="block"),
            Chain(DraftModel(4, least), Lossless(), warp),
        ):
            begun = len(seen)
            Engine(models, cached=cached).generate(decoder, prompt, 30, rng_for(0.8, 3, "p"))
        for _, chain in seen[begun:]:  # of the last one
            likely = chain.q.gather(1, chain.tokens[:, None])[:-1, 0]
            assert bool((likely >= least).all()), "a chain ends at its first unlikely token"
            early += chain.tokens.shape[0] < 4
    assert early > 6
    assert len(seen) > 60
    lengths = {chain.tokens.shape[0] for _, chain in seen}
    assert lengths >= {1, 3, 4}, "some end at an unlikely token"
    for ids, chain in seen:
        num = chain.tokens.shape[0]
        if num:
            assert torch.allclose(chain.q, warp(whole_block(models, ids))[:num], atol=2e-5)


@pytest.mark.at_most(fast=1, slow=2)
@pytest.mark.parametrize("kind", slow_for((*FAMILIES, *LAYOUTS), "qwen3_next", SPECULATORS))
def test_greedy_output_equals_generate(models: dict[Any, Any], kind: str) -> None:
    decoders = {
        **greedy_chains(BLOCK - 1, 2),
        "stops early": Chain(DraftModel(4, 0.3), Lossless(), GREEDY),
    }
    for name, out in outputs_equal_generate(models, decoders, LENGTH, (True, False)):
        assert name == "in turn" or out.num_draft_calls <= out.num_rounds, "one forward a round"


@pytest.mark.parametrize("kind", ["llama", "gpt2", *LAYOUTS])
def test_drafts_are_those_of_transformers(models: dict[Any, Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = models["target"], models["draft"]
    how = {"assistant_model": draft.module, "speculation_type": "dflash"}
    texts = list(prompts())[1:]
    seen = candidates(monkeypatch, DFlashTokenCandidateGenerator, target.module, texts, LENGTH, **how)
    for ids, tokens in seen:
        session = draft.session()
        session.read(ids, None)
        session.feed(draft.ids(ids), 0)
        with torch.inference_mode():
            assert draft.logits(session.block(len(ids))).argmax(-1).tolist() == tokens


def test_a_draft_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    target = tmp_path / "target"
    tiny_models.build("llama").config.save_pretrained(target)
    place = dflash_folder(tmp_path / "draft", [0, 1])
    config = ModelConfig(str(target), dflash=str(place))
    check_head(config, {"speculative_g4": 4})
    with pytest.raises(ModelError, match=r"gamma of 'speculative_g5' is 5, but .* blocks of 5, .* to at most 4"):
        check_head(config, {"speculative_g5": 5})
    for values, said in (
        ({"target_layer_ids": [0, 2]}, "reads the outputs of the layers 0, 2, but .* has the layers 0 to 1"),
        ({"mask_token_id": 96}, "has mask_token_id 96, but .* has 96 tokens"),
        ({"hidden_size": 64}, "was made for a target with hidden_size 64, but .* has 32"),
        ({"vocab_size": 97}, "was made for a target with vocab_size 97, but .* has 96"),
    ):
        before = (place / "config.json").read_text()
        config_of(place, **values)
        with pytest.raises(ModelError, match=said):
            check_head(config, {})
        (place / "config.json").write_text(before)
    with pytest.raises(ModelError, match=r"draft '.*' \(llama\) has no block_size in its config"):
        check_head(ModelConfig(str(target), dflash=str(target)), {})
    with pytest.raises(ModelError, match=r"model './nowhere' is neither a folder nor a model on the hub"):
        check_head(ModelConfig(str(target), dflash="./nowhere"), {})


def test_the_last_layer_is_read_after_the_norm() -> None:
    assert dflash_config.layers_kept([0, 3], 4) == [0, 4]


@pytest.mark.parametrize("kind", ["llama"])
def test_no_rule_accepts_an_eos_of_a_block_before_the_minimum(models: dict[Any, Any]) -> None:
    vocabulary = models["target"].vocab_size
    for rule in (TopK(vocabulary), EntropyGate(0.0, GREEDY), Fuzzy("tv", 2.0, GREEDY)):
        decoder = Chain(DraftModel(BLOCK - 1), rule, GREEDY)
        free = Engine(models).generate(decoder, [5, 9], LENGTH, CertainRng())
        assert free.num_judged, "the rule accepts what is drafted"
        eos = free.token_ids[1:3]
        out = Engine(models, eos).generate(decoder, [5, 9], LENGTH, CertainRng(), ending=Ending(10))
        assert len(out.token_ids) > 10
        assert not set(eos) & set(out.token_ids[:10])
        assert out.num_judged
