"""What is wrong with a head is told by name, from its config where that can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny_models
from helpers.chain_heads import config_of
from helpers.cli_runner import evaluate
from helpers.eagle3_heads import ReferenceHead
from specexp.errors import ModelError
from specexp.lm.heads.eagle3_config import read_config
from specexp.lm.heads.loading import load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.runtime import ModelConfig


@pytest.fixture(scope="module")
def target() -> HFModel:
    return HFModel(tiny_models.build("llama", num_hidden_layers=5), "the/target", graphs="off")


@pytest.fixture
def folder(tmp_path: Path, target: HFModel) -> Path:
    return ReferenceHead(target).save(tmp_path / "head")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a model": ({"architectures": ["LlamaForCausalLM"]}, "is LlamaForCausalLM, not LlamaForCausalLMEagle3;"),
    "nothing": ({"architectures": []}, "is of no architecture, not LlamaForCausalLMEagle3;"),
    "wider target": ({"target_hidden_size": 64}, "a target with hidden_size 64, but model 'the/target' has 32;"),
    "other ids": ({"vocab_size": 128256}, "a target with vocab_size 128256, but model 'the/target' has 96;"),
    "two layers": ({"num_hidden_layers": 2}, "has 2 layers; an EAGLE-3 head here has one."),
    "EAGLE-2": ({"eagle_config": {"use_aux_hidden_state": False}}, "reads one layer of the target"),
    "a layer too far": (
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 5]}},
        "reads the outputs of the layers 1, 2, 5, but it must be 3 of the 5 layers of model 'the/target', 0 to 4.",
    ),
    "two of them": ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2]}}, "layers 1, 2, but it must be 3"),
    "a size in words": ({"hidden_size": "32"}, "has hidden_size 32; it must be a whole number >= 1."),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit(folder: Path, target: HFModel, name: str) -> None:
    values, message = CONFIGS[name]
    config_of(folder, **values)
    with pytest.raises(ModelError, match=r"^head ") as caught:
        read_config(str(folder), target.module.config, target.name)
    assert message in str(caught.value)


WEIGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"fc.weight": None}, "lacks fc.weight; it must be an EAGLE-3 head"),
    "unknown": ({"midlayer.extra": torch.zeros(3)}, "has layer.extra, which is not known; it must be an EAGLE-3 head"),
    "shape": ({"norm.weight": torch.ones(31)}, "norm.weight is (31,), but its config.json says (32,)."),
    "no tables": ({"d2t": None, "lm_head.weight": torch.zeros(90, 32)}, "lm_head.weight is (90, 32)"),
    "offsets": ({"d2t": torch.ones(96, dtype=torch.long)}, "d2t must give 96 different ids below 96 (offsets)."),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fit(folder: Path, target: HFModel, name: str) -> None:
    values, message = WEIGHTS[name]
    file = folder / "model.safetensors"
    weights = {**load_file(file), **values}
    save_file({key: value for key, value in weights.items() if value is not None}, file)
    with pytest.raises(ModelError) as caught:
        load_head(ModelConfig("the/target", eagle3=str(folder)), target)
    assert message in str(caught.value)


def test_a_head_of_another_target(folder: Path, target: HFModel) -> None:
    config_of(folder, specexp={"target": "0123456789abcdef"})
    with pytest.raises(ModelError, match=r"was trained for another target .0123456789abcdef. than model 'the/target'"):
        load_head(ModelConfig("the/target", eagle3=str(folder)), target)
    config_of(folder, specexp={"target": target.fingerprint()})
    assert load_head(ModelConfig("the/target", eagle3=str(folder)), target).facts()["scored_ids"] == 96


@pytest.mark.parametrize(("family", "why"), [("phi3", "its rotary angles depend on the length"), ("xlm", "no cache")])
def test_targets_that_keep_no_states(family: str, why: str) -> None:
    values: dict[str, Any] = {}
    if family == "phi3":
        values = {"rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        }, "original_max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
    model = HFModel(tiny_models.build(family, **values), family, graphs="off")
    with pytest.raises(ModelError, match=f"model '{family}' keeps no hidden states for a draft: .*{why}"):
        model.keep_states([0])


def test_the_commands_say_so_before_anything_is_loaded(workplace: Path, folder: Path) -> None:
    result = evaluate("--draft", f"eagle3:{folder}", "--output", "out")
    assert result.exit_code == 2
    assert "was made for a target with hidden_size 32, but model 'zoo:target' has 192" in result.output
    assert not Path("out").exists()
    result = evaluate("--draft", f"eagle3:{folder}", "--methods", "autojudge", "--output", "out")
    assert result.exit_code == 2
    assert "method 'autojudge' needs a draft that is a model by itself" in result.output
