"""The check at load finds what no config says: families that are refused by name are found by it, too."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import tiny_models
from helpers.model_folders import build
from specexp.errors import ModelError
from specexp.lm.configs import refusals
from specexp.lm.hf import forward_check
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.hf_session import HFSession
from specexp.lm.hf.loading import load_model
from specexp.lm.native.kv_cache import NativeSession
from specexp.lm.runtime import ModelConfig

BY_SLOT: dict[str, tuple[dict[str, Any], str]] = {
    "mpt": ({}, "scores a token tree differently than its paths one by one: logits differ by"),
    "bart": ({"is_encoder_decoder": False}, "scores a token tree differently"),
    "gpt_neo": ({}, "scores a token tree differently"),
    "llama4_text": ({}, "scores a token tree differently"),
    "bloom": ({}, "cannot score a token tree: ValueError: too many values to unpack"),
    "falcon": ({"alibi": True}, "cannot score a token tree: "),
}
NO_CACHE = {"bert": {"is_decoder": False}, "roformer": {"is_decoder": False}}


def loaded(monkeypatch: pytest.MonkeyPatch, kind: str, **more: Any) -> HFModel:
    """A model of which its config tells nothing."""
    for name in ("refusal", "tree_refusal"):
        monkeypatch.setattr(refusals, name, lambda config, facts: None)
    return HFModel(tiny_models.build(kind, **more), kind)


@pytest.mark.parametrize("kind", BY_SLOT)
def test_a_tree_that_is_scored_by_slots_is_found(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    more, message = BY_SLOT[kind]
    model = loaded(monkeypatch, kind, **more)
    model.check_cache()  # chains are right
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            model.check_trees()
        assert message in str(caught.value)


@pytest.mark.parametrize("kind", NO_CACHE)
def test_a_cache_that_is_not_used_is_found(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = loaded(monkeypatch, kind, **NO_CACHE[kind])
    with pytest.raises(ModelError, match=r"(gives other logits with a KV cache|tokens after cached ones.*Error: )"):
        model.check_cache()


def test_a_tree_is_checked_before_the_first_one_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    from specexp.lm.model import Branches

    model = loaded(monkeypatch, "mpt")
    with pytest.raises(ModelError, match="scores a token tree differently"):
        model.session().feed(model.ids([5, 6, 7]), 2, False, Branches(1, [0, 0], [[0], [1]]))


def test_both_forwards_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native forward and transformers', each by the path that decodes with it."""
    for forward, kind in (("auto", NativeSession), ("transformers", HFSession)):
        model = HFModel(build("llama"), "llama", forward=forward)
        fed: list[type] = []
        whole = kind.feed

        def feed(self: Any, *arguments: Any, whole: Any = whole, fed: list[type] = fed, **more: Any) -> Any:
            fed.append(type(self))
            return whole(self, *arguments, **more)

        monkeypatch.setattr(kind, "feed", feed)
        model.check_trees()
        assert fed == [kind] * 6
        model.check_trees()
        assert len(fed) == 6


def test_an_own_forward_that_misplaces_a_tree_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from specexp.lm.native import kv_cache

    def by_slot(start: int, num: int, branches: Any) -> Any:
        sees, at = tree_attention(start, num, branches)
        return sees, torch.arange(at.shape[0])

    tree_attention = kv_cache.tree_attention
    monkeypatch.setattr(kv_cache, "tree_attention", by_slot)
    with pytest.raises(ModelError, match="scores a token tree differently"):
        HFModel(build("llama"), "llama").check_trees()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "kind", ["gpt2", *(pytest.param(k, marks=pytest.mark.slow) for k in ("qwen3_moe", "gemma3n_text"))]
)
def test_rounding_of_a_coarse_dtype_is_no_fault_and_misplaced_tokens_are(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    for seed in range(3):
        model = HFModel(tiny_models.build(kind, seed).to(dtype), kind)
        model.check_cache()
        model.check_trees()
    wrong = loaded(monkeypatch, "mpt")
    wrong.module.to(dtype)
    with pytest.raises(ModelError, match="scores a token tree differently"):
        wrong.check_trees()


@pytest.mark.parametrize("how", [{"quantization": "nf4"}, {"quantization": "int8"}, {"offload": "cpu"}])
def test_quantized_and_offloaded_models_are_checked_too(tmp_path: Any, how: dict[str, str]) -> None:
    build("gpt2", n_embd=64).save_pretrained(tmp_path)  # a row of whole groups of nf4
    model = load_model(ModelConfig(str(tmp_path), **how))
    model.check_cache()
    model.check_trees()
    assert model._tree_check.passed


def test_logits_that_are_no_numbers_are_left_to_the_run() -> None:
    module = copy.deepcopy(build("gpt2"))
    with torch.no_grad():
        module.lm_head.weight.fill_(float("nan"))
    model = HFModel(module, "gpt2")
    model.check_cache()
    model.check_trees()


def test_a_context_too_short_for_the_check_is_left_out() -> None:
    model = HFModel(build("gpt2", n_positions=forward_check.PREFIX), "gpt2")
    model.check_trees()


def test_a_suppressed_id_is_no_difference() -> None:
    for family in ("llama", "gpt2"):
        model = HFModel(build(family), family, suppressed=[5, 9])
        model.check_cache()
        model.check_trees()


@pytest.mark.parametrize("packed", [False, True])
def test_weights_packed_for_bfloat16_are_compared_as_coarsely_as_it_rounds(packed: bool) -> None:
    """bitsandbytes multiplies nf4 in bfloat16 on a CPU with AVX-512 BF16, though the model computes in float32."""
    model = HFModel(build("llama"), "llama")
    weight = next(model.module.parameters())
    weight.quant_state = SimpleNamespace(packing_format_for_cpu=packed)
    rows = torch.tensor([[4.0, -float("inf")]])
    expected = forward_check.COARSEST if packed else forward_check.ROUNDING[torch.float32]
    assert forward_check._rounding(model, rows) == pytest.approx(4.0 * expected)
