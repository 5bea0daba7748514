"""DFlash drafts in the layouts of their authors and of speculators: what they compute, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config

from helpers import tiny_models
from helpers.chain_heads import AUTHORS, SPECULATORS, config_of, dflash_folder, in_layout
from specexp.errors import ModelError
from specexp.lm.heads.dflash_config import check
from specexp.lm.heads.loading import check_head, load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.runtime import ModelConfig

TEXT = [5, 20, 33, 41, 8, 15, 70, 3, 60]


def block_of(weights: Mapping[str, Tensor], layer: Mapping[str, Any], x: Tensor, states: Tensor) -> Tensor:
    """The states [B, D] of a block whose embeddings are x[B, D], after the target's states [N, T D]: what the authors'
    model computes, where no window ends."""
    num, size, heads, pairs = states.shape[0], x.shape[0], layer["num_attention_heads"], layer["num_key_value_heads"]
    dim = layer["head_dim"]

    def norm(values: Tensor, name: str) -> Tensor:
        return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + layer["rms_norm_eps"]) * weights[name]

    def turned(values: Tensor, start: int) -> Tensor:
        places = torch.arange(start, start + values.shape[0])
        angles = torch.outer(places, layer["rope_theta"] ** (-torch.arange(0, dim, 2) / dim)).repeat(1, 2)[:, None]
        half = torch.cat([-values[..., dim // 2 :], values[..., : dim // 2]], dim=-1)
        return values * angles.cos() + half * angles.sin()

    context = norm(states @ weights["fc.weight"].T, "hidden_norm.weight")
    for i in range(layer["num_hidden_layers"]):
        of = f"layers.{i}."
        normed = norm(x, f"{of}input_layernorm.weight")
        read = torch.cat([context, normed])
        queries = (normed @ weights[f"{of}self_attn.q_proj.weight"].T).view(size, heads, dim)
        keys = (read @ weights[f"{of}self_attn.k_proj.weight"].T).view(num + size, pairs, dim)
        values = (read @ weights[f"{of}self_attn.v_proj.weight"].T).view(num + size, pairs, dim)
        queries = turned(norm(queries, f"{of}self_attn.q_norm.weight"), num)
        keys = turned(norm(keys, f"{of}self_attn.k_norm.weight"), 0)
        keys, values = (each.repeat_interleave(heads // pairs, dim=1) for each in (keys, values))
        shares = (torch.einsum("qhd,khd->hqk", queries, keys) / dim**0.5).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", shares, values).reshape(size, heads * dim)
        x = x + mixed @ weights[f"{of}self_attn.o_proj.weight"].T
        normed = norm(x, f"{of}post_attention_layernorm.weight")
        gate, up = (normed @ weights[f"{of}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (functional.silu(gate) * up) @ weights[f"{of}mlp.down_proj.weight"].T
    return norm(x, "norm.weight")


@pytest.mark.parametrize("layout", [AUTHORS, SPECULATORS])
def test_it_computes_what_its_authors_do(tmp_path: Path, layout: str) -> None:
    target = HFModel(tiny_models.build("llama"), "llama", graphs="off")
    folder = in_layout(dflash_folder(tmp_path, [1, 0]), layout)
    config = json.loads((folder / "config.json").read_text())
    draft: Any = load_head(ModelConfig("llama", dflash=str(folder)), target)
    assert draft.facts()["reads_layers"] == [1, 0], "in this order"
    with torch.inference_mode():
        seen = target.module(input_ids=torch.tensor([TEXT]), output_hidden_states=True).hidden_states
        states = torch.cat([seen[2], seen[1]], dim=-1)[0, :-1]
        embedded = target.module.get_input_embeddings()(torch.tensor([TEXT[-1], 4, 4, 4, 4]))
        layer = config if layout == AUTHORS else config["transformer_layer_config"]
        wanted = block_of(load_file(folder / "model.safetensors"), layer, embedded, states)[1:]
        session = draft.session()
        session.read(TEXT, None)
        session.feed(draft.ids(TEXT), 0)
        assert torch.allclose(session.block(len(TEXT)), wanted, atol=2e-5)


OF_LAYER = "transformer_layer_config"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "DFlash 2": (AUTHORS, {"architectures": ["DFlash2DraftModel"]}, "is DFlash2DraftModel, not DFlashDraftModel,"),
    "a causal block": (AUTHORS, {"dflash_config": {"causal_head": True}}, "has causal_head True in its dflash_config,"),
    "Domino": (AUTHORS, {"dflash_config": {"projector_type": "domino"}}, "has projector_type domino in its dflash"),
    "latent attention": (AUTHORS, {"dflash_config": {"attention_mode": "mla"}}, "has attention_mode mla in its"),
    "other layers": (AUTHORS, {"model_type": "llama"}, "has layers of model type llama, not qwen3,"),
    "biases": (AUTHORS, {"attention_bias": True}, "has attention_bias true,"),
    "no mask": (AUTHORS, {"dflash_config": {"mask_token_id": None}}, r"\(qwen3\) has no mask_token_id in its config"),
    "no layers": (SPECULATORS, {"aux_hidden_state_layer_ids": None}, r"\(qwen3\) has no target_layer_ids in its"),
    "another target": (AUTHORS, {"num_target_layers": 36}, "for a target with num_hidden_layers 36, but .* has 2;"),
    "the embedding": (SPECULATORS, {"aux_hidden_state_layer_ids": [0, 1]}, "outputs of the layers -1, 0, but"),
    "DSpark": (SPECULATORS, {"speculators_model_type": "dspark"}, "has speculators_model_type dspark,"),
    "few tokens": (SPECULATORS, {"draft_vocab_size": 48}, "scores draft_vocab_size 48 of the target's 96 tokens,"),
    "shifted": (SPECULATORS, {"shift_label": True}, "has shift_label True,"),
    "from the anchor": (SPECULATORS, {"sample_from_anchor": True}, "has sample_from_anchor True,"),
    "a causal window": (
        SPECULATORS,
        {"sliding_window_non_causal": False},
        "has layers with a window that read no later",
    ),
    "wider states": (
        SPECULATORS,
        {"target_hidden_size": 64},
        "reads states of target_hidden_size 64 into other layers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_module_does_not_compute_is_refused_from_the_config(tmp_path: Path, case: str) -> None:
    layout, values, said = REFUSED[case]
    target = tmp_path / "target"
    tiny_models.build("llama").config.save_pretrained(target)
    folder = in_layout(dflash_folder(tmp_path / "draft", [0, 1]), layout)
    config = ModelConfig(str(target), dflash=str(folder))
    check_head(config, {})
    own = json.loads((folder / "config.json").read_text())
    merged = {name: {**own[name], **v} if isinstance(v, dict) else v for name, v in values.items()}
    config_of(folder, **merged)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=said) as refused:
        check_head(config, {})
    assert "\n" not in str(refused.value)


def test_weights_that_lack_or_are_not_known_are_named(tmp_path: Path) -> None:
    target = HFModel(tiny_models.build("llama"), "llama", graphs="off")
    for change, said in (("lacks", "lacks weights"), ("more", r"has weights \(markov.weight\) that transformers'")):
        folder = in_layout(dflash_folder(tmp_path / change, [0, 1]), AUTHORS)
        weights = load_file(folder / "model.safetensors")
        if change == "more":
            weights["markov.weight"] = torch.zeros(2)
        else:
            del weights["hidden_norm.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=said):
            load_head(ModelConfig("llama", dflash=str(folder)), target)


# config.json of z-lab/Qwen3-8B-DFlash-b16.
QWEN3_8B: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"}, "block_size": 16, "bos_token_id": 151643,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}, "dtype": "bfloat16",
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 12288, "layer_types": ["full_attention"] * 5, "max_position_embeddings": 40960,
    "max_window_layers": 5, "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 5,
    "num_key_value_heads": 8, "num_target_layers": 36, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_the_config_that_is_published_for_qwen3_8b(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    target = Qwen3Config(hidden_size=4096, num_hidden_layers=36, vocab_size=151936)
    read = check(str(tmp_path), target, "Qwen/Qwen3-8B", {"speculative_k15": 15})
    assert read.layers == [1, 9, 17, 25, 33]
    made = {name: getattr(read.values, name) for name in ("block_size", "mask_token_id", "rms_norm_eps", "layer_types")}
    assert made == {
        "block_size": 16, "mask_token_id": 151669, "rms_norm_eps": 1e-6, "layer_types": ["full_attention"] * 5,
    }  # fmt: skip
    assert read.values.rope_parameters["rope_theta"] == 1000000
    with pytest.raises(ModelError, match="set gamma to at most 15"):
        check(str(tmp_path), target, "Qwen/Qwen3-8B", {"speculative_k16": 16})
