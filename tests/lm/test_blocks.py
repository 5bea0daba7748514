"""Every family of the native forward, and every part of a block: the logits are transformers'."""

from __future__ import annotations

import copy
import random
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from helpers import tiny_models
from helpers.block_cases import CASES
from helpers.feeds import fed_both_ways, gap
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.lm.blocks import families
from specexp.lm.blocks.block_spec import UndescribedError
from specexp.lm.blocks.description import describe
from specexp.lm.blocks.families import FAMILIES, Family
from specexp.lm.blocks.norms import layer_norm, rms_norm
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Branches
from specexp.lm.native import cuda_graphs

CLOSE = 3e-5  # of the largest logit, in float32


def models(case: str, **more: Any) -> tuple[HFModel, HFModel]:
    """The same tiny model on transformers' forward and on the native one."""
    kind, settings = CASES[case]
    module = tiny_models.build(kind, **settings)
    reference = HFModel(copy.deepcopy(module), "reference", forward="transformers", **more)
    model = HFModel(module, "native", **more)
    assert model.native is not None, model.why_not_native
    assert reference.native is None
    return reference, model


@pytest.mark.at_most(fast=40)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_hidden_states_are_those_of_transformers(case: str) -> None:
    """In one piece and in many, longer than the windows, after a rewind, in a tree, and after the path kept of it."""
    sessions = [model.session() for model in models(case)]
    numbers, size = random.Random(0), 0.0

    def fed(num: int, rows: int, branches: Branches | None = None) -> float:
        nonlocal size
        tokens = torch.tensor([numbers.randrange(3, 96) for _ in range(num)])
        expected, actual = (session.feed(tokens, rows, True, branches) for session in sessions)
        size = max(size, float(expected[0].abs().max()))
        return gap([actual], [expected])

    worst = [fed(21, 21), fed(1, 1), fed(5, 3)]
    for session in sessions:
        session.truncate(24)
    tree = Branches(24, [0, 1, 1, 2, 2, 3], [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 4, 5]])
    worst.append(fed(6, 6, tree))
    for session in sessions:
        session.truncate(24, [24, 26, 28])
    worst += [fed(1, 1), fed(9, 9)]
    assert max(worst) < CLOSE * max(size, 10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_rows_that_are_fed_together_get_what_each_gets_alone(case: str) -> None:
    _, model = models(case)
    for actual, expected in fed_both_ways(model, rounds=4):
        assert gap(actual, expected) < CLOSE * 10


@pytest.mark.at_most(slow=12)
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_recorded_forwards_decode_as_transformers_does(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains with captured drafts and trees; with suppressed ids, which caps must not bring back."""
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 16)
    kind, settings = CASES[case]
    module, tape = tiny_models.build(kind, **settings), Tape()
    target = HFModel(module, "target", graphs=tape, suppressed=[7, 30])
    draft = HFModel(tiny_models.disturbed(module), "draft", graphs=tape)
    reference = Engine({"target": HFModel(copy.deepcopy(module), "x", forward="transformers", suppressed=[7, 30])})
    engine = Engine({"target": target, "draft": draft})
    for prompt in ([5, 6, 7], [9, 8, 7, 6, 5, 4, 30, 31, 32, 33, 34]):
        expected = reference.generate(Baseline(Warp()), prompt, 20, CertainRng()).token_ids
        for decoder in (Chain(DraftModel(4), Lossless(), Warp()), SpecExec(8, 3, Warp(), 4)):
            assert engine.generate(decoder, prompt, 20, CertainRng()).token_ids == expected
    assert tape.num_recorded > 4


def test_a_large_mixture_is_not_recorded() -> None:
    """Its experts sort the tokens, which waits for the device: more than a few tokens are fed directly."""
    _, model = models("mixtral", graphs=Tape())
    session: Any = model.session()
    session.feed(torch.arange(3, 36), 33)
    before = session.graphs.recordings.num_captures
    session.feed(torch.arange(3, 67), 64)
    assert (before, session.graphs.recordings.num_captures) == (0, 0)
    session.feed(torch.arange(3, 8), 5)
    assert session.graphs.recordings.num_captures == 1
    dense: Any = models("llama", graphs=Tape())[1].session()
    dense.feed(torch.arange(3, 36), 33)
    assert dense.graphs.recordings.num_captures == 1


CHANGED = [(kind, field.name) for kind, family in FAMILIES.items() for field in fields(Family)
           if getattr(family, field.name) != field.default and field.name != "wide_norms"]  # fmt: skip
WHERE_IT_SHOWS = {
    "cohere2": "cohere 2, mixed layers",
    "exaone4": "exaone 4, mixed layers",
    "exaone_moe": "exaone moe, mixed layers",
    "smollm3": "smollm 3, no positions",
}


@pytest.mark.parametrize("kind,field", CHANGED)
def test_a_fact_that_is_wrong_is_found_at_load(kind: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model decodes by transformers' forward, with a note; each fact in the table makes a difference."""
    default = next(each.default for each in fields(Family) if each.name == field)
    family: Any = replace(FAMILIES[kind], **{field: default})
    monkeypatch.setitem(families.FAMILIES, kind, family)
    model_type, settings = CASES[WHERE_IT_SHOWS.get(kind, kind)]
    module = tiny_models.build(model_type, **settings)
    model = HFModel(module, "m")
    assert model.native is None
    assert "the native forward" in str(model.facts()["forward"])
    assert any("runs on transformers' forward, which is slower" in note for note in model.notes)
    logits, _ = model.session().feed(torch.tensor([5, 9]), 2)
    with torch.inference_mode():
        assert torch.allclose(logits, module(torch.tensor([[5, 9]])).logits[0], atol=1e-5)


def test_a_model_that_passes_the_check_has_no_note() -> None:
    assert models("qwen3")[1].notes == []


class Doubled(nn.Linear):
    """A projection that is more than its weight."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


def _one_more_part(module: Any) -> None:
    module.model.layers[1].mlp.adapter = nn.Linear(4, 4)


def _another_projection(module: Any) -> None:
    module.model.layers[1].self_attn.k_proj = Doubled(32, 16, bias=False)


def _no_norm(module: Any) -> None:
    del module.model.layers[0].input_layernorm


def _chunks(module: Any) -> None:
    module.config.layer_types = ["chunked_attention", "full_attention"]


def _angles(module: Any) -> None:
    module.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def _a_part_of_the_stack(module: Any) -> None:
    module.model.prelude = nn.Linear(4, 4)


UNDESCRIBED: dict[str, tuple[Any, str]] = {
    "one more part": (_one_more_part, "its blocks have a part that is not known: mlp.adapter.weight"),
    "another projection": (_another_projection, "a projection of LlamaAttention is Doubled, no nn.Linear"),
    "a norm is missing": (_no_norm, "its blocks have norms in an unknown arrangement: post_attention_layernorm"),
    "chunks": (_chunks, "it has chunked_attention layers"),
    "angles": (_angles, "its rotary angles (dynamic) depend on the length"),
    "a part of the stack": (_a_part_of_the_stack, "its decoder has a part that is not known: prelude.weight"),
}


@pytest.mark.parametrize("case", UNDESCRIBED)
def test_what_a_description_would_leave_out_is_named(case: str) -> None:
    change, reason = UNDESCRIBED[case]
    module = tiny_models.build("llama")
    change(module)
    with pytest.raises(UndescribedError) as caught:
        describe(module)
    assert str(caught.value) == reason


def test_code_from_a_models_own_repository_is_not_described() -> None:
    module = tiny_models.build("llama")
    module.__class__ = type("LlamaForCausalLM", (type(module),), {"__module__": "transformers_modules.llama"})
    with pytest.raises(UndescribedError, match="does not know the family of LlamaForCausalLM"):
        describe(module)


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # the functions that are chosen for it; they run on a CPU here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32,), (3, 32), None])
def test_norms_are_their_formula_but_for_rounding(device: str, dtype: torch.dtype, shape: Any) -> None:
    like: Any = SimpleNamespace(dtype=dtype, device=torch.device(device))
    x = torch.randn(5, 3, 32).to(dtype)
    weight = None if shape is None else torch.randn(shape).to(dtype)
    bias = None if shape is None else torch.randn(shape).to(dtype)
    wide, scale = x.double(), 1.0 if weight is None else weight.double()
    rms = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    assert torch.allclose(rms_norm(weight, 1e-5, 32, like)(x), rms.to(dtype), **close)
    if weight is not None:
        assert torch.allclose(rms_norm(weight.float(), 1e-5, 32, like)(x), rms.to(dtype), **close)
    centred = wide - wide.mean(-1, keepdim=True)
    norm = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    norm = norm if bias is None else norm + bias.double()
    assert torch.allclose(layer_norm(weight, bias, 1e-5, 32)(x), norm.to(dtype), **close)
