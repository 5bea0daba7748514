"""A draft made of the target's own layers: the same weights, its first layers' slots, and generate()'s tokens."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from helpers import tiny_models
from helpers.drafted_chains import GREEDY, greedy_chains
from helpers.generation import generate, prompts
from helpers.model_folders import slow_for
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.draft_length import NOMINAL
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine
from specexp.engine.request import Request
from specexp.errors import ModelError
from specexp.lm.configs.layer_ranges import check_layers, layer_indices
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import model_of_layers

LENGTH = 40
FAMILIES = (
    "llama", "gemma2", "gpt_oss", "qwen3_moe", "gpt_neox", "gpt2", "opt", "lfm2", "qwen3_next", "mistral3",
    "deepseek_v3",
)  # fmt: skip
HYBRID = {"lfm2": ["conv", "full_attention"] * 2, "qwen3_next": ["linear_attention", "full_attention"] * 2}
DECODERS: dict[str, Decoder] = {
    **greedy_chains(4, 3),
    "tree": SpecExec(12, 4, GREEDY, 3),
    "adapts": Chain(DraftModel(8, costs=NOMINAL), Lossless(), GREEDY),
    "draft alone": Baseline(GREEDY, "draft"),
}


def target_of(family: str, capture: Any = "auto") -> HFModel:
    more: dict[str, Any] = {"layer_types": HYBRID[family]} if family in HYBRID else {}
    if family == "gpt_oss":
        more["layer_types"] = ["sliding_attention", "full_attention"] * 2
    if family == "mistral3":
        return HFModel(tiny_models.build(family), family, graphs=capture)
    return HFModel(tiny_models.build(family, num_hidden_layers=4, **more), family, graphs=capture)


def with_layers(target: HFModel, *layers: int) -> dict[Any, HFModel]:
    return {"target": target, "draft": model_of_layers(target, layers, "own")}


@pytest.mark.parametrize("family", slow_for(FAMILIES, *set(FAMILIES) - {"llama", "gpt2", "lfm2"}))
def test_it_scores_what_a_model_of_these_layers_scores(family: str) -> None:
    target = target_of(family)
    for layers in ((0,),) if family == "mistral3" else ((0, 1), (0, 3), (1, 2, 3)):
        draft = model_of_layers(target, layers, "own")
        draft.check_cache()
        same = type(draft.module)(draft.module.config).eval()
        try:
            same.load_state_dict(draft.module.state_dict())
        except RuntimeError:
            assert family in {"deepseek_v3", *HYBRID}, "only their layers differ by place in a way no list tells"
            continue
        tokens = torch.tensor([5, 9, 20, 33, 7, 41, 50, 61, 3, 18, 25, 30])
        session = draft.session()
        cached = [session.feed(part, part.shape[0])[0] for part in tokens.split([6, 1, 5])]
        with torch.inference_mode():
            whole = same(input_ids=tokens[None], use_cache=False).logits[0]
        assert torch.allclose(torch.cat(cached), whole, atol=2e-5)
        assert draft.facts()["layers"] == list(layers)
        assert (draft.native is None) == (target.native is None)


@pytest.mark.parametrize("first", ["before", "after"])
def test_hidden_states_are_captured_once(first: str) -> None:
    """transformers hooks layers at the first forward that asks for hidden states: here before or after the copy."""
    target = HFModel(tiny_models.build("llama", num_hidden_layers=4), "llama", forward="transformers")
    tokens = torch.tensor([5, 9, 20])
    if first == "before":
        target.session().feed(tokens, 1, hidden=True)
    draft = model_of_layers(target, (0, 1, 2), "own")
    with torch.inference_mode():
        for model, num in ((target, 4), (draft, 3), (target, 4)):
            states = model.module(input_ids=tokens[None], output_hidden_states=True).hidden_states
            assert len(states) == num + 1
            assert torch.equal(states[0], model.module.get_input_embeddings()(tokens[None]))
            assert torch.equal(
                states[1], target.module(input_ids=tokens[None], output_hidden_states=True).hidden_states[1]
            )
            assert not torch.equal(states[1], states[2])


def test_its_weights_are_the_targets() -> None:
    target = target_of("llama")
    before = {p.data_ptr() for p in target.module.parameters()}
    draft = model_of_layers(target, (0, 2), "own")
    assert {p.data_ptr() for p in draft.module.parameters()} < before
    assert target.native is not None
    assert draft.native is not None
    assert draft.native.blocks[1].projection is target.native.blocks[2].projection
    assert draft.facts()["parameters"] < target.facts()["parameters"]
    assert draft.fingerprint() != target.fingerprint()
    assert len(target.module.model.layers) == 4, "the target keeps its layers"


@pytest.mark.at_most(slow=6)
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("layers", "forwards"),
    [
        ((0, 1), "called"),
        pytest.param((0, 2), "called", marks=pytest.mark.slow),
        pytest.param((0, 1, 2), "called", marks=pytest.mark.slow),
        ((0, 1), "recorded"),
        pytest.param((0, 2), "recorded", marks=pytest.mark.slow),
        pytest.param((0, 1, 2), "recorded", marks=pytest.mark.slow),
    ],
)
def test_greedy_output_equals_generate(name: str, layers: tuple[int, ...], forwards: str) -> None:
    models = with_layers(target_of("llama", Tape() if forwards == "recorded" else "off"), *layers)
    engine, accepted = Engine(models), 0
    for prompt in prompts():
        out = engine.generate(DECODERS[name], prompt, LENGTH, CertainRng())
        role: Any = "draft" if name == "draft alone" else "target"
        assert out.token_ids == generate(models[role], prompt, LENGTH, None)
        accepted += out.num_accepted
        # What another decoder leaves in the slots must not matter to the next one.
        engine.generate(DECODERS["draft alone"], prompt[::-1], 9, CertainRng())
    assert accepted > 0 or name == "draft alone"


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "lfm2"])
def test_other_forwards_and_caches_decode_as_generate_does(family: str) -> None:
    models = with_layers(target_of(family), 0, 1)
    for prompt in prompts():
        out = Engine(models).generate(DECODERS["chain"], prompt, LENGTH, CertainRng())
        assert out.token_ids == generate(models["target"], prompt, LENGTH, None)


@pytest.mark.parametrize("warp", [GREEDY, Warp(0.8, top_p=0.9)])
def test_slots_are_shared_without_a_difference_but_in_what_is_fed(warp: Warp) -> None:
    """The draft feeds no prompt, and after a full acceptance one token instead of two."""
    target = target_of("llama")
    shared, other = with_layers(target, 0, 1, 2), with_layers(target, 0, 1, 2)
    other["draft"].own = None  # nothing tells that its slots are the target's
    decoder, results = Chain(DraftModel(4), Lossless(), warp), []
    for models in (shared, other):
        engine = Engine(models)
        outs = [engine.generate(decoder, prompt, LENGTH, rng_for(warp.temperature, 3, "p")) for prompt in prompts()]
        results.append((outs, engine.spent()))
    (outs, fed), (others, fed_apart) = results
    assert [out.token_ids for out in outs] == [out.token_ids for out in others]
    assert [out.accepted_histogram for out in outs] == [out.accepted_histogram for out in others]
    full = sum(out.num_full for out in outs)
    assert full > 0
    assert fed["target_positions"] == fed_apart["target_positions"]
    prefilled = sum(len(prompt) - 1 for prompt in prompts())
    ended = sum(out.num_full and out.accepted_histogram[-1] > 0 for out in outs)
    saved = fed_apart["draft_positions"] - fed["draft_positions"]
    assert prefilled + full - ended <= saved <= prefilled + full


def test_rows_decoded_together_give_what_each_gives_alone() -> None:
    models = with_layers(target_of("llama"), 0, 1)
    given = [prompt for prompt in prompts() for _ in range(2)]
    for decoder in (DECODERS["chain"], DECODERS["tree"]):
        alone = [Engine(models).generate(decoder, prompt, LENGTH, CertainRng()).token_ids for prompt in given]
        requests = [Request(decoder, prompt, LENGTH, CertainRng()) for prompt in given]
        together = dict(Engine(models, max_batch_size=3).generate_all(requests))
        assert [together[i].token_ids for i in range(len(given))] == alone


def test_a_pool_that_grows_while_a_draft_is_ahead_keeps_both() -> None:
    models = with_layers(target_of("llama"), 0, 1)
    long = Chain(DraftModel(60), Lossless(), GREEDY)
    out = Engine(models).generate(long, [5, 9], 100, CertainRng())
    assert out.token_ids == generate(models["target"], [5, 9], 100, None)
    engine = Engine(models)
    target, draft = (engine._context(role, 0, 4).session for role in ("target", "draft"))
    target.feed(models["target"].ids([5, 9, 3]), 0)
    draft.follow(target)  # type: ignore[attr-defined]
    ahead = [draft.feed(models["draft"].ids([token]), 1)[0] for token in [7] * 90]
    apart = models["draft"].session()
    again = apart.feed(models["draft"].ids([5, 9, 3] + [7] * 90), 90)[0]
    assert torch.allclose(torch.cat(ahead), again, atol=2e-5)


@pytest.mark.parametrize("forwards", ["called", "recorded"])
def test_caches_that_outlive_a_request_are_not_shared(forwards: str) -> None:
    models = with_layers(target_of("llama", Tape() if forwards == "recorded" else "off"), 0, 1)
    # Its recordings stand in the target's buffers, and outlive it.
    Engine(models).generate(DECODERS["chain"], [4, 5, 6], 12, CertainRng())
    gc.collect()
    kept = Engine(models, reuse=True)
    for prompt in ([4, 5, 6, 7, 8], [4, 5, 6, 9], [4, 5, 6, 7, 8, 10, 11]):
        kept.generate(DECODERS["draft alone"], [*prompt, 9, 9], 12, CertainRng())
        out = kept.generate(DECODERS["chain"], prompt, 20, CertainRng())
        assert out.token_ids == generate(models["target"], prompt, 20, None)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0-3", (0, 1, 2, 3)), ("0-9:3", (0, 3, 6, 9)), ("0, 2,5-7", (0, 2, 5, 6, 7)), ("4", (4,)), ("0-8:4", (0, 4, 8))],
)
def test_layers_by_name(text: str, layers: tuple[int, ...]) -> None:
    assert layer_indices(text) == layers


@pytest.mark.parametrize("text", ["", "3-1", "0-3:0", "2,1", "1,1", "-2", "0-", "a", "0-9999999", "0-2,2", "1.5"])
def test_what_names_no_layers(text: str) -> None:
    with pytest.raises(ValueError, match="it must be ranges of layers from 0 on"):
        layer_indices(text)


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [
        ("llama", "0-2", "draft.layers is 0-2, but model 'x' has 2 layers, 0 to 1; name some of these."),
        ("llama", "0-1", "draft.layers is 0-1, which is all of model 'x'; name fewer layers."),
        ("gemma3n_text", "0", "model 'x' (gemma3n_text) has layers that read other layers' keys"),
    ],
)
def test_layers_that_a_target_has_not(family: str, layers: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_layers(layers, tiny_models.config(family), "x")
    assert str(caught.value).startswith(message)


def test_a_target_whose_layers_are_moved_has_no_draft_of_its_own() -> None:
    module = tiny_models.build("llama")
    module.model.layers[0]._hf_hook = object()
    with pytest.raises(ModelError, match="cannot be a draft of their own while accelerate moves them"):
        model_of_layers(HFModel(module, "x"), (0,), "own")
