"""Tiny folders of targets with MTP layers, under the names of published checkpoints, and of DFlash drafts in each
layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.models.muse_glimmer_assistant.configuration_muse_glimmer_assistant import MuseGlimmerAssistantConfig
from transformers.models.muse_glimmer_assistant.modeling_muse_glimmer_assistant import MuseGlimmerAssistantModel

from helpers import tiny_models
from helpers.generation import prompts
from specexp.lm.heads.loading import load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.model_config import model_class
from specexp.lm.runtime import ModelConfig

# Families whose checkpoints have MTP layers as further layers of the model, and how many are made.
AS_LAYERS = {"deepseek_v3": 3, "glm4_moe": 1, "bailing_hybrid": 2}


def configured(kind: str, **more: Any) -> dict[str, Any]:
    """Settings of a tiny target of this family with MTP layers."""
    num = AS_LAYERS.get(kind, 1)
    values: dict[str, Any] = {"num_mtp_layers": num}
    if kind == "bailing_hybrid":
        values |= {"mtp_layer_types": ["full_attention"] * num, "mtp_mlp_layer_types": ["sparse"] * num}
    if kind == "mellum":
        values |= {
            "layer_types": ["sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
        }
    return values | more


def noisy(parameters: Iterable[Tensor], seed: int) -> None:
    """Set these weights at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 1 + 0.2 * noise)


def fit(main: Any, layers: MtpModel, trained: list[Tensor], steps: int) -> None:
    """Train the layers to predict greedy outputs of the target, so that some of their drafts are accepted."""
    texts = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.no_grad():
            whole = main.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30,
                                  eos_token_id=None, pad_token_id=0)  # fmt: skip
            states = main(input_ids=whole, output_hidden_states=True).hidden_states[-1]
        texts.append((whole, states))
    optimizer = torch.optim.Adam(trained, 1e-2)
    for _ in range(steps):
        loss = torch.zeros(())
        for ids, states in texts:
            for k, logits in enumerate(whole_forward(layers, ids, states)):
                if ids.shape[1] > k + 2:
                    loss = loss + functional.cross_entropy(logits[: ids.shape[1] - k - 2], ids[0, k + 2 :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def mtp_models(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """The target and its layers. Checkpoints name the layers by the published models' size; ours are smaller."""
    family = model_class(AutoConfig.from_pretrained(folder))
    if kind in AS_LAYERS:
        monkeypatch.setattr(family, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[2-9]\."])
    target = HFModel(family.from_pretrained(folder).eval(), kind, graphs="off")
    return {"target": target, "draft": load_head(ModelConfig(str(folder), mtp=True), target)}


def whole_forward(layers: MtpModel, ids: Tensor, states: Tensor) -> list[Tensor]:
    """Logits [N - 1 - k, V] of every layer k on ids[1, N], from the target's final states [1, N, D] and no cache."""
    result = []
    x = states[:, : ids.shape[1] - 1]
    for k in range(len(layers.layers)):
        x = x[:, : ids.shape[1] - 1 - k]
        if not x.shape[1]:
            break
        positions = torch.arange(k + 1, ids.shape[1])[None]
        x = layers.forward_layer(k, x, positions, MtpCache(), input_ids=ids[:, k + 1 :])
        result.append(layers._project_to_logits(x)[0])
    return result


def mtp_folder(folder: Path, kind: str, steps: int = 8, **more: Any) -> Path:
    """A target with MTP layers that know a little, saved as the family's checkpoints are."""
    main = tiny_models.build(kind, **configured(kind, **more))
    main.save_pretrained(folder)
    number = main.config.get_text_config().num_mtp_layers
    own = {id(parameter) for parameter in main.parameters()}
    layers = MtpModel(main, number)
    trained = [parameter for parameter in layers.parameters() if id(parameter) not in own]
    noisy(trained, 5)
    fit(main, layers, trained, steps)
    weights = load_file(folder / "model.safetensors")
    first = main.config.get_text_config().num_hidden_layers
    for name, value in layers.state_dict().items():
        if name.startswith("layers."):
            weights |= {key: each.clone() for key, each in published(name, value, first, kind).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def published(name: str, value: Tensor, first: int, kind: str) -> dict[str, Tensor]:
    """A weight of `MtpModel` as checkpoints name it; joined experts are in one tensor each there."""
    match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
    assert match is not None
    layer, rest = int(match[1]), match[2].removeprefix("mtp_block.")
    if kind == "mellum":
        names = {"eh_proj.": "fc.", "enorm.": "pre_fc_norm_embedding.", "hnorm.": "pre_fc_norm_hidden.",
                 "post_norm.": "norm."}  # fmt: skip
        part = next((old for old in names if rest.startswith(old)), "")
        start = f"mtp.{names[part]}" if part else f"mtp.layers.{layer}."
        rest = rest.removeprefix(part) if part else rest
    else:
        start = f"model.layers.{first + layer}."
        rest = re.sub(r"^post_norm\.", "shared_head.norm.", rest)
    if rest.endswith("experts.gate_up_proj"):
        stem, half = rest.removesuffix("gate_up_proj"), value.shape[1] // 2
        parts = {"gate_proj": value[:, :half], "up_proj": value[:, half:]}
        return {f"{start}{stem}{e}.{p}.weight": v[e] for p, v in parts.items() for e in range(value.shape[0])}
    if rest.endswith("experts.down_proj"):
        stem = rest.removesuffix("down_proj")
        return {f"{start}{stem}{e}.down_proj.weight": value[e] for e in range(value.shape[0])}
    return {start + rest: value}


def dflash_folder(folder: Path, layers: list[int], **values: Any) -> Path:
    """A random DFlash assistant for targets of hidden size 32."""
    config = MuseGlimmerAssistantConfig(
        **{
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 160, "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"], "block_size": 5, "mask_token_id": 4,
            "target_layer_ids": layers, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **values,
        }
    )  # fmt: skip
    module = MuseGlimmerAssistantModel(config)
    noisy(module.parameters(), 3)
    module.save_pretrained(folder)
    return folder


AUTHORS, SPECULATORS = "authors", "speculators"  # layouts of DFlash drafts beside transformers' own


def in_layout(folder: Path, layout: str) -> Path:
    """Write a DFlash draft of `dflash_folder` in another published layout; its angles and norms are Qwen3's there."""
    values = json.loads((folder / "config.json").read_text())
    same = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "hidden_act", "layer_types",
    )  # fmt: skip
    layer = {name: values[name] for name in same} | {
        "model_type": "qwen3", "vocab_size": tiny_models.VOCAB, "rms_norm_eps": 1e-3, "attention_bias": False,
        "rope_theta": 100.0, "rope_scaling": None, "use_sliding_window": True, "sliding_window": 40,
        "max_window_layers": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    block, mask, layers = values["block_size"], values["mask_token_id"], values["target_layer_ids"]
    weights = {
        name.replace("encoder.fc.", "fc.").replace("encoder.output_norm_enc.", "hidden_norm."): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    if layout == AUTHORS:
        config = layer | {
            "architectures": ["DFlashDraftModel"], "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
            "block_size": block, "num_target_layers": 2, "dtype": "float32",
            "dflash_config": {"mask_token_id": mask, "target_layer_ids": layers},
        }  # fmt: skip
    else:
        weights["verifier_norm.weight"] = torch.ones(values["hidden_size"])
        config = {
            "architectures": ["DFlashDraftModel"], "speculators_model_type": "dflash", "block_size": block,
            "mask_token_id": mask, "aux_hidden_state_layer_ids": [number + 1 for number in layers],
            "draft_vocab_size": tiny_models.VOCAB, "sliding_window_non_causal": True, "transformer_layer_config": layer,
        }  # fmt: skip
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def config_of(folder: Path, **values: Any) -> Path:
    """Change values of the folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder
