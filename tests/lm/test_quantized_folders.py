"""Folders with quantized weights, which transformers loads by itself, decode as generate() does.

On a CPU it reads FP8 and MXFP4 as floats, which the native forward takes; the weights of the others stay quantized, and
transformers' forward decodes them. Those that need a package are skipped without it: make test-quantized.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from helpers import tiny_models
from helpers.family_table import CHAIN, GREEDY, LENGTH, LOOKUP, TREE, generated, prompts
from helpers.quantized_folders import KINDS, fp8
from specexp import config
from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import CertainRng
from specexp.engine import Engine
from specexp.engine.engine import Request
from specexp.errors import ModelError
from specexp.installed import is_installed
from specexp.lm.hf import loading
from specexp.lm.hf.loading import load_model, read_config
from specexp.lm.runtime import ModelConfig
from specexp.pair import first_look

PACKAGES = {"torchao": "torchao", "compressed-tensors": "compressed_tensors", "gptq": "gptqmodel", "awq": "gptqmodel"}
CASES = [pytest.param(kind, marks=[] if kind == "fp8" else pytest.mark.slow) for kind in KINDS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
def test_every_method_gives_the_tokens_of_generate(tmp_path: Path, kind: str) -> None:
    write, forward = KINDS[kind]
    if kind in PACKAGES and not is_installed(PACKAGES[kind]):
        pytest.skip(f"{PACKAGES[kind]} is not installed: make test-quantized")
    values = write(tmp_path)
    model = load_model(ModelConfig(str(tmp_path)))
    assert model.facts()["forward"] == forward
    if not values:
        assert model.facts()["quantization"]["quant_method"] == kind
    for name, value in values.items():
        assert model.module.get_parameter(name).equal(value), name
    engine, outputs = Engine({"target": model, "draft": model}, max_batch_size=3), []
    for prompt in prompts():
        outputs.append(generated(model.module, prompt))
        assert len(set(outputs[-1])) > 3
    decoders = (Baseline(GREEDY), CHAIN, LOOKUP, TREE)
    requests = [Request(decoder, prompt, LENGTH, CertainRng()) for decoder in decoders for prompt in prompts()]
    for number, out in engine.generate_all(requests):
        assert out.token_ids == outputs[number % len(outputs)], decoders[number // len(outputs)]
    assert model.fingerprint() == load_model(ModelConfig(str(tmp_path))).fingerprint()


def test_weights_that_fail_at_their_first_forward_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.build("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_finish", Mock(side_effect=ImportError("no kernel for this device")))
    with pytest.raises(ModelError, match=r"cannot be loaded \(float32, nf4 on cpu\): no kernel for this device"):
        load_model(ModelConfig(str(tmp_path), quantization="nf4"))


def _with(folder: Path, quantization: dict[str, Any]) -> ModelConfig:
    fp8(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization}))
    return ModelConfig(str(folder))


@pytest.mark.parametrize("kind", ["awq", "gptq", "quanto"])
def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    more = {"bits": 4} if kind != "quanto" else {}
    model = _with(tmp_path, {"quant_method": kind, **more})
    monkeypatch.setattr("specexp.lm.configs.config_check.is_installed", lambda name: False)
    words = rf"has quantized weights \({kind}\), which need what is not installed: pip install"
    for look in (lambda: read_config(model), lambda: _first_look(model)):
        with pytest.raises(ModelError, match=words):
            look()


@pytest.mark.parametrize("setting,value", [("quantization", "nf4"), ("offload", "cpu")])
def test_settings_that_such_weights_cannot_follow_are_refused(tmp_path: Path, setting: str, value: str) -> None:
    fp8(tmp_path)
    model = ModelConfig(str(tmp_path), **{setting: value})  # type: ignore[arg-type]
    words = rf"has quantized weights \(fp8\), and {setting} is {value}; leave {setting} out"
    for look in (lambda: read_config(model), lambda: _first_look(model)):
        with pytest.raises(ModelError, match=words):
            look()


def _first_look(model: ModelConfig) -> None:
    target = {"model": model.model, "quantization": model.quantization, "offload": model.offload}
    file = Path(model.model, "experiment.yaml")
    file.write_text(json.dumps({"target": target, "methods": ["baseline"]}))
    first_look.check(config.resolve("arith_quick", {"config": str(file)}))
