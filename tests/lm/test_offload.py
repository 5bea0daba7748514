"""Layers in CPU memory or on disk: the same model, held elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from helpers.generation import generate, prompts
from helpers.model_folders import COMMON, LLAMA_LIKE, build, randomised
from specexp import config
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Role
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.errors import ConfigError, ModelError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.runtime import ModelConfig
from specexp.pair.loading import load_pair

KINDS = ("cpu", "disk")
FAMILIES = ("llama", "gpt2", "gpt_oss")
Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def held(folder: Folder) -> Callable[[str, str], HFModel]:
    made: dict[tuple[str, str], HFModel] = {}

    def load(family: str, kind: str) -> HFModel:
        if (family, kind) not in made:
            made[family, kind] = load_model(ModelConfig(str(folder(family)), offload=kind))
        return made[family, kind]

    return load


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_model_in_memory(
    held: Callable[[str, str], HFModel], folder: Folder, family: str, kind: str
) -> None:
    module = load_model(ModelConfig(str(folder(family)))).module
    plain, model = HFModel(module, family, forward="transformers"), held(family, kind)
    ids = plain.ids([5, 9, 11, 40, 7])
    expected, got = (each.session().feed(ids, rows=5, hidden=True) for each in (plain, model))
    assert torch.equal(got[0], expected[0])
    assert got[1] is not None
    assert expected[1] is not None
    assert torch.equal(got[1], expected[1])
    assert model.fingerprint() == plain.fingerprint(), "a judge for the one fits the other"


@pytest.mark.parametrize("kind", KINDS)
def test_no_layer_is_held_between_calls(
    held: Callable[[str, str], HFModel], pair: Callable[[str], dict[str, HFModel]], kind: str
) -> None:
    plain, model = pair("llama")["target"], held("llama", kind)
    for _ in range(2):
        in_memory = {name for name, x in model.module.named_parameters() if x.device.type != "meta"}
        assert in_memory == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
        model.session().feed(model.ids([4, 5]), rows=1)
    layers = sum(x.nbytes for x in plain.module.model.layers.parameters())
    facts = model.facts()
    assert (facts["offload"], facts["offloaded_bytes"]) == (kind, layers)
    assert facts["parameters"] == plain.facts()["parameters"]
    assert model.offloaded
    assert not plain.offloaded
    assert (plain.facts()["offload"], plain.facts()["offloaded_bytes"]) == ("none", 0)


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_greedy_output_equals_generate(held: Callable[[str, str], HFModel], pair: Callable[[str], dict[str, HFModel]],
                                       family: str, kind: str) -> None:  # fmt: skip
    models: dict[Role, HFModel] = {"target": held(family, kind), "draft": pair(family)["draft"]}
    for prompt in prompts():
        expected = generate(pair(family)["target"], prompt, 20, None)
        for decoder in (Baseline(Warp()), Chain(DraftModel(4), Lossless(), Warp()), SpecExec(12, 4, Warp())):
            assert Engine(models).generate(decoder, prompt, 20, rng_for(0, 0, "p")).token_ids == expected


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_specexec_gives_the_baselines_tokens(
    held: Callable[[str, str], HFModel], pair: Callable[[str], dict[str, HFModel]], temperature: float
) -> None:
    models: dict[Role, HFModel] = {"target": held("llama", "disk"), "draft": pair("llama")["draft"]}
    accepted = 0
    for seed in range(4):
        rng = rng_for(temperature, seed, "p")
        plain = Engine(models).generate(Baseline(Warp(temperature)), [5, 9, 11], 32, rng)
        tree = Engine(models).generate(SpecExec(24, 5, Warp(temperature)), [5, 9, 11], 32, rng)
        assert tree.token_ids == plain.token_ids
        accepted += tree.num_accepted
    assert accepted > 0


def test_files_that_can_be_mapped_are_and_the_rest_goes_with_the_model(folder: Folder, tmp_path: Path) -> None:
    """Mixtral's experts are put together as they are read."""
    sizes = {**COMMON, **LLAMA_LIKE, "num_local_experts": 2, "num_experts_per_tok": 1}
    mixture = randomised(transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**sizes)).eval())
    mixture.save_pretrained(tmp_path)
    reference = HFModel(mixture, "in memory")
    for path, written in ((folder("llama"), False), (tmp_path, True)):
        model = load_model(ModelConfig(str(path), offload="disk"))
        assert model.offload is not None
        place = Path(model.offload.folder)
        assert any(place.iterdir()) == written
        if written:
            ids = reference.ids([5, 9, 11])
            assert torch.allclose(
                model.session().feed(ids, rows=3)[0], reference.session().feed(ids, rows=3)[0], atol=1e-5
            )
        del model
        gc.collect()
        assert not place.exists()


def test_a_reduced_dtype_is_kept(folder: Folder) -> None:
    reference, got = (
        load_model(ModelConfig(str(folder("llama")), dtype="bfloat16", offload=kind)) for kind in ("none", "disk")
    )
    reference = HFModel(reference.module, "in memory", forward="transformers")
    ids = reference.ids([5, 9, 11])
    assert torch.equal(got.session().feed(ids, rows=3)[0], reference.session().feed(ids, rows=3)[0])
    assert got.facts()["dtype"] == "bfloat16"


def test_what_does_not_go_with_it_is_refused_with_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("target: {offload: disk, quantization: nf4}\ndraft: {offload: cpu, device: auto}\n")
    with pytest.raises(ConfigError) as caught:
        config.resolve("arith_quick", {"config": str(file)})
    assert caught.value.faults == [
        "target: offload is disk, but quantization is nf4, whose weights cannot be moved from call to call; set one of"
        " them to none.",
        "draft: offload is cpu, but device is auto, which spreads layers by itself; set device to one.",
    ]
    file.write_text("target: {offload: tape}\n")
    with pytest.raises(ConfigError, match=r"unknown offload 'tape'\. Known: cpu, disk, none"):
        config.resolve("arith_quick", {"config": str(file)})
    with pytest.raises(ModelError, match=r"cannot be loaded .*offload is disk, but quantization is nf4"):
        load_model(ModelConfig("zoo:target", offload="disk", quantization="nf4"))


def test_a_model_that_names_no_layers_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(build("llama")), "_no_split_modules", None)
    monkeypatch.setattr(type(build("llama").model), "_no_split_modules", None)
    with pytest.raises(ModelError, match=r"its class does not name its layers .*; set offload to none"):
        load_model(ModelConfig(str(folder("llama")), offload="cpu"))


def test_the_embedded_pairs_target_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("target: {offload: disk}\n")
    loaded = load_pair(config.resolve("arith_quick", {"config": str(file)}), {"target", "draft"})
    assert [loaded.models[role].facts()["offload"] for role in ("target", "draft")] == ["disk", "none"]
