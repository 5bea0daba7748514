"""What a config says before any weights are read: the context, and what the model cannot decode."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig

from helpers import tiny_models
from helpers.cli_runner import evaluate, refused
from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.errors import ModelError
from specexp.lm.configs import refusals
from specexp.lm.hf import model_config
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.source import ZOO

CONTEXTS = {
    "llama": ("max_position_embeddings", 77), "gpt2": ("n_positions", 78), "mpt": ("max_seq_len", 79),
    "whisper": ("max_target_positions", 80), "bloom": ("seq_length", 81), "ctrl": ("n_positions", 82),
}  # fmt: skip


def read(folder: Path, kind: str, **more: Any) -> Any:
    """A config as it is found in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **more}))
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("kind", CONTEXTS)
def test_the_context_is_read_under_each_familys_name_for_it(tmp_path: Path, kind: str) -> None:
    name, value = CONTEXTS[kind]
    assert model_config.context_of(read(tmp_path, kind, **{name: value}), "x") == value


def test_a_config_without_a_context_has_no_limit(tmp_path: Path) -> None:
    assert model_config.context_of(read(tmp_path, "bloom"), "x") == refusals.NO_LIMIT


@pytest.mark.parametrize("value", [0, -1])
def test_a_context_that_is_none_is_refused(tmp_path: Path, value: int) -> None:
    for kind, name in (("llama", "max_position_embeddings"), ("mpt", "max_seq_len")):
        with pytest.raises(ModelError, match=f"has {name} {value} in its config; the context must be a whole number"):
            model_config.check(read(tmp_path, kind, **{name: value}), "x")


NOTHING: dict[str, tuple[dict[str, Any], str]] = {
    "xlnet": ({}, "decodes with a memory (mems)"),
    "bert": ({}, "is an encoder: each token attends to later ones"),
    "roberta": ({"is_decoder": False}, "is an encoder: each token attends to later ones"),
    "t5": ({}, "is an encoder-decoder model"),
    "bart": ({"is_encoder_decoder": True}, "is an encoder-decoder model"),
    "prophetnet": ({"is_encoder_decoder": False}, "scores a token differently after cached ones"),
    "cpmant": ({}, "puts its own prompt before the tokens"),
    "xmod": ({"is_decoder": True}, "no default_language in its config"),
    "moshi": ({}, "needs audio codes"),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_what_cannot_decode_is_refused_by_its_config(tmp_path: Path, kind: str) -> None:
    more, message = NOTHING[kind]
    assert message in str(model_config.refusal(read(tmp_path, kind, **more)))


CHAINS: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({}, "has layers with a recurrent state, which holds one sequence and no tree"),
    "qwen3_next": ({}, "has layers with a recurrent state"),
    "falcon_h1": ({}, "has layers with a recurrent state"),
    "deepseek_v32": ({}, "has an index of keys in its cache, which holds one sequence and no tree"),
    "openai-gpt": ({}, "decodes without a cache"),
    "reformer": ({"is_decoder": True}, "decodes without a cache"),
    "mpt": ({}, "places tokens by their slot"),
    "bloom": ({}, "places tokens by their slot"),
    "bart": ({"is_encoder_decoder": False}, "places tokens by their slot"),
    "whisper": ({"is_encoder_decoder": False}, "places tokens by their slot"),
    "falcon": ({"alibi": True}, "weighs tokens by their slot in the cache (ALiBi)"),
    "gpt_neo": ({}, "has local layers, whose window counts slots"),
    "llama4": ({"text_config": {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}}, "scales attention"),
    "llama4_text": ({"attn_temperature_tuning": False}, "has chunked_attention layers, which take no tree mask"),
}
BOTH: dict[str, dict[str, Any]] = {
    "llama": {}, "falcon": {"alibi": False}, "opt": {}, "bert": {"is_decoder": True},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global"], 2]]},
    "gemma3n_text": {}, "gemma4_text": {"num_kv_shared_layers": 2},
    "llama4_text": {
        "num_hidden_layers": 4, "layer_types": ["full_attention"] * 4, "attn_temperature_tuning": False,
    },
}  # fmt: skip

KINDS = {
    "llama": refusals.KEY_VALUE, "gemma4_text": refusals.KEY_VALUE, "deepseek_v32": refusals.KEY_VALUE,
    "mamba": refusals.RECURRENT, "falcon_h1": refusals.RECURRENT, "jamba": refusals.RECURRENT,
    "xlm": refusals.NO_CACHE, "rwkv": refusals.NO_CACHE, "minimax": refusals.NO_CACHE,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_tells_how_a_model_continues(tmp_path: Path, kind: str) -> None:
    assert model_config.cache_kind(read(tmp_path, kind)) == KINDS[kind]


@pytest.mark.parametrize("kind", CHAINS)
def test_what_scores_no_trees_is_refused_for_trees_alone(tmp_path: Path, kind: str) -> None:
    more, message = CHAINS[kind]
    config = read(tmp_path, kind, **more)
    assert model_config.refusal(config) is None
    assert message in str(model_config.tree_refusal(config))


@pytest.mark.parametrize("name", ["Mllama", "Emu3"])
def test_a_loaded_class_of_a_text_part_is_not_taken_for_one_without_a_head(name: str) -> None:
    """The auto class gives these the text part of a config, whose type no auto class has."""
    whole = getattr(transformers, f"{name}Config")().get_text_config()
    whole.update({
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "cross_attention_layers": [], "pad_token_id": 0,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    })  # fmt: skip
    model = HFModel(getattr(transformers, f"{name}ForCausalLM")(whole).eval(), "m")
    model.check_cache()
    out = Engine({"target": model}).generate(Baseline(Warp()), [5, 6, 7], 4, CertainRng())
    assert len(out.token_ids) == 4


def test_a_class_of_the_models_own_repository_may_have_the_head(tmp_path: Path) -> None:
    """Which a config of transformers does not say; only where its `auto_map` names such a class."""
    config = read(tmp_path, "vit")
    assert "neither a causal language model" in str(model_config.refusal(config))
    config.auto_map = {"AutoModelForCausalLM": "modeling.Own"}
    assert model_config.refusal(config) is None
    config = transformers.LlavaConfig()
    assert model_config.is_conditional(config)
    config.auto_map = {"AutoModelForCausalLM": "modeling.Own"}
    assert not model_config.is_conditional(config)


@pytest.mark.parametrize("kind", BOTH)
def test_what_decodes_either_way_is_not_refused(tmp_path: Path, kind: str) -> None:
    config = read(tmp_path, kind, **BOTH[kind])
    assert model_config.refusal(config) is None
    assert model_config.tree_refusal(config) is None


def without_weights(folder: Path, kind: str) -> Path:
    """A folder with a config and the embedded pair's tokenizer, and nothing else."""
    tiny_models.config(kind, vocab_size=592).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ZOO / "target" / name, folder)
    return folder


@pytest.mark.parametrize(
    "kind, methods, message",
    [
        ("xlnet", "baseline", "(xlnet) decodes with a memory (mems)"),
        (
            "mamba",
            "baseline,specexec",
            "(mamba) has layers with a recurrent state, which holds one sequence and no tree",
        ),
        ("mpt", "baseline,specexec", "(mpt) places tokens by their slot in the cache"),
        ("mpt", "baseline,speculative", "cannot be loaded (float32 on cpu)"),  # the weights are asked for
    ],
)
def test_a_refusal_comes_before_any_weights(
    workplace: Path, tmp_path: Path, kind: str, methods: str, message: str
) -> None:
    folder = without_weights(tmp_path / "model", kind)
    (workplace / "mine.yaml").write_text(f"target: {folder}\ndraft: {folder}\nlimit: 2\n")
    refused(evaluate("--config", "mine.yaml", "--methods", methods, "--output", "out"), message, workplace)
