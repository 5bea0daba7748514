"""MTP layers as the draft: drafts are transformers' own candidates, and outputs are generate()'s."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.generation.candidate_generator import MTPCandidateGenerator

from helpers.chain_heads import AS_LAYERS, mtp_folder, mtp_models, whole_forward
from helpers.drafted_chains import GREEDY, candidates, greedy_chains, outputs_equal_generate, watch_chains
from helpers.generation import prompts
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.draft_length import NOMINAL
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.errors import ModelError
from specexp.lm.heads.loading import check_head, load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.model_config import model_class
from specexp.lm.runtime import ModelConfig

FAMILIES = ["mellum", *AS_LAYERS]
LENGTH = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family, made when it is first asked for."""
    return cache(lambda kind: mtp_folder(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture
def models(folders: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    return mtp_models(folders(kind), kind, monkeypatch)


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", ["mellum", "deepseek_v3", "bailing_hybrid"])
def test_rows_are_those_of_a_whole_forward(
    models: dict[Any, Any], kind: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    warp, seen = Warp(0.8), watch_chains(monkeypatch)
    target, layers, num = models["target"], models["draft"].module, models["draft"].num_layers
    for prompt in ([7], [5, 9], [5, 20, 33, 41, 8, 15, 70, 3, 60]):
        for decoder in (
            Chain(DraftModel(num), Lossless(), warp),
            Chain(DraftModel(num), Lossless(), warp, verification="block"),
        ):
            Engine(models, cached=cached).generate(decoder, prompt, 12, rng_for(0.8, 3, "p"))
    assert len(seen) > 20
    for ids, chain in seen:
        if len(ids) < 2 or not chain.tokens.shape[0]:
            continue
        whole = torch.tensor([[*ids, *chain.tokens.tolist()[:-1]]])
        with torch.inference_mode():
            states = target.module(input_ids=whole[:, : len(ids)], output_hidden_states=True).hidden_states[-1]
            # What follows the committed tokens has no states; later layers do not read them there.
            states = torch.cat([states, states.new_zeros(1, whole.shape[1] - len(ids), states.shape[2])], dim=1)
            used = whole_forward(layers, whole, states)[: chain.tokens.shape[0]]
            rows = [logits[len(ids) - 2] for logits in used]
        q = warp(target.as_logits(torch.stack(rows)))
        assert torch.allclose(chain.q, q, atol=2e-5)


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_output_equals_generate(models: dict[Any, Any], kind: str) -> None:
    num = models["draft"].num_layers
    decoders = {
        **greedy_chains(num, num),
        "stops early": Chain(DraftModel(num, 0.3), Lossless(), GREEDY),
        "adapts": Chain(DraftModel(num, costs=NOMINAL), Lossless(), GREEDY),
    }
    counts = {"accepted": 0, "rejected": 0}
    for _, out in outputs_equal_generate(models, decoders, LENGTH):
        counts["accepted"] += out.num_accepted
        counts["rejected"] += out.num_drafted - out.num_accepted
    assert min(counts.values()) > 20, counts


@pytest.mark.parametrize("kind", ["mellum", "deepseek_v3", "glm4_moe"])
def test_drafts_are_those_of_transformers(models: dict[Any, Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate that `generate(use_mtp=True)` makes, against the chain drafted here after the same text."""
    draft = models["draft"]
    texts = list(prompts())[2:]  # transformers fails on texts shorter than it has layers
    seen = candidates(monkeypatch, MTPCandidateGenerator, models["target"].module, texts, LENGTH, use_mtp=True)
    for ids, tokens in seen:
        session, drafted = draft.session(), []
        session.read(ids, None)
        logits, _ = session.feed(draft.ids(ids), 1)
        for _ in tokens:
            drafted.append(int(logits.argmax()))
            logits, _ = session.feed(draft.ids(drafted[-1:]), 1)
        assert drafted == tokens
        assert len(tokens) <= draft.num_layers
    assert max(len(tokens) for _, tokens in seen) == draft.num_layers, "each layer drafts a token"


@pytest.mark.parametrize("kind", ["deepseek_v3"])
def test_rows_of_a_text_that_is_only_scored(models: dict[Any, Any], kind: str) -> None:
    draft, ids = models["draft"], [5, 20, 33, 41, 8, 15, 70, 3, 60]
    rows, _ = draft.session().feed(draft.ids(ids), 4)
    for i, row in enumerate(rows):
        session = draft.session()
        session.read(ids[: 6 + i], None)
        assert torch.allclose(session.feed(draft.ids(ids[: 6 + i]), 1)[0][0], row, atol=2e-5)


def test_a_target_without_layers_is_refused_by_name(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"'zoo:target' .* has no MTP layers that transformers knows by its config"):
        check_head(ModelConfig("zoo:target", mtp=True), {})
    place = str(folders("mellum"))
    check_head(ModelConfig(place, mtp=True), {"speculative_g1": 1})
    with pytest.raises(ModelError, match=r"gamma of 'speculative_g4' is 4, but model '.*' has 1 MTP layer, each of"):
        check_head(ModelConfig(place, mtp=True), {"speculative_g4": 4})


def test_lacking_weights_are_named(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    family = model_class(AutoConfig.from_pretrained(folders("mellum")))
    family.from_pretrained(folders("mellum")).save_pretrained(tmp_path)  # without the layers
    target = HFModel(family.from_pretrained(tmp_path).eval(), "mellum", graphs="off")
    with pytest.raises(ModelError, match=r"the MTP layers of model '.*' cannot be loaded: .* weights are missing"):
        load_head(ModelConfig(str(tmp_path), mtp=True), target)
