"""Loading as asked: dtype, quantization, attention, vocabularies that differ by padding, and what is refused."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.model_folders import build, disturbed
from specexp.config import resolve
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.errors import ModelError
from specexp.lm.hf import loading
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.hf.source import ZOO
from specexp.lm.runtime import ModelConfig, check_vocabulary, shared_vocabulary
from specexp.pair.loading import load_pair

SIZES = {"hidden_size": 64, "intermediate_size": 128}
CHAIN = Chain(DraftModel(4), Lossless(), Warp())
PROMPT = [5, 9, 11, 40]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama folder that bitsandbytes can quantize, and its disturbed draft."""
    module = build("llama", **SIZES)
    folders = {}
    for role, model in (("target", module), ("draft", disturbed(module, 0.05))):
        folders[role] = tmp_path_factory.mktemp(role)
        model.save_pretrained(folders[role])
    return folders


def generate(model: HFModel, length: int, **more: Any) -> list[int]:
    with torch.inference_mode():
        ids = model.module.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), do_sample=False,
            max_new_tokens=length, eos_token_id=None, pad_token_id=0, **more,
        )  # fmt: skip
    return [int(i) for i in ids[0, len(PROMPT) :]]


@pytest.mark.parametrize(
    "target,draft",
    [({"quantization": q}, {}) for q in ("int8", "nf4", "fp4")]
    + [({}, {"quantization": "nf4"}), ({"quantization": "nf4"}, {"quantization": "int8"})],
    ids=str,
)
def test_a_quantized_pair_decodes_as_generate_does(wide: dict[str, Path], target: Any, draft: Any) -> None:
    """In fp32 arithmetic; int8 without outlier columns."""
    models = {
        "target": load_model(ModelConfig(str(wide["target"]), **target)),
        "draft": load_model(ModelConfig(str(wide["draft"]), **draft)),
    }
    kind = type(models["target"].module.model.layers[0].mlp.up_proj).__name__
    assert kind == {"int8": "Linear8bitLt", "nf4": "Linear4bit", "fp4": "Linear4bit"}.get(
        target.get("quantization", ""), "Linear"
    )
    for decoder in (Baseline(Warp()), CHAIN):
        out = Engine(models).generate(decoder, PROMPT, 32, CertainRng())
        assert out.token_ids == generate(models["target"], 32)


def test_a_first_divergence_in_bfloat16_is_a_near_tie(wide: dict[str, Path]) -> None:
    """Rows computed together round differently from rows computed alone; nothing else may differ."""
    models = {role: load_model(ModelConfig(str(path), dtype="bfloat16")) for role, path in wide.items()}
    assert models["target"].module.dtype == torch.bfloat16
    for start in range(12):
        prompt = [*PROMPT, start]
        plain = Engine(models).generate(Baseline(Warp()), prompt, 32, CertainRng()).token_ids
        chain = Engine(models).generate(CHAIN, prompt, 32, CertainRng()).token_ids
        same = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(plain, chain, strict=True)))
        if len(same) < len(plain):
            logits, _ = models["target"].session().feed(models["target"].ids([*prompt, *plain[: len(same)]]), rows=1)
            gap = abs(float(logits[0, plain[len(same)]] - logits[0, chain[len(same)]]))
            # bfloat16 has 8 bits: two roundings of the largest logit.
            assert gap <= 2 * 2**-8 * float(logits.abs().max()), f"tokens differ at {len(same)} by {gap}: no near tie"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_that_was_asked_for_is_used(wide: dict[str, Path], attention: str) -> None:
    model = load_model(ModelConfig(str(wide["target"]), attention=attention))
    assert model.module.config._attn_implementation == attention
    out = Engine({"target": model}).generate(Baseline(Warp()), PROMPT, 24, CertainRng())
    assert out.token_ids == generate(model, 24)


def test_padding_ids_are_never_emitted_and_the_shared_part_is_used() -> None:
    """A target of 96 ids and a draft of 104, of which the tokenizer knows 90."""
    known = 90
    target = HFModel(build("qwen2"), "target", known)
    draft = HFModel(build("qwen2", seed=3, vocab_size=104), "draft", known)
    assert (target.vocab_size, draft.vocab_size) == (known, known)
    padding = list(range(known, 96))
    models = {"target": target, "draft": draft}
    expected = generate(target, 40, suppress_tokens=padding)
    for decoder in (Baseline(Warp()), CHAIN):
        assert Engine(models).generate(decoder, PROMPT, 40, CertainRng()).token_ids == expected
    free = HFModel(target.module, "free")
    emitted: set[int] = set()
    for seed, model in itertools.product(range(4), (target, free)):
        out = Engine({"target": model}).generate(Baseline(Warp(5.0)), PROMPT, 100, rng_for(5.0, seed, "p"))
        if model is target:
            assert max(out.token_ids) < known
        else:
            emitted |= set(out.token_ids)
    assert emitted & set(padding), "without the mask padding would have been emitted: the test says something"


def test_a_real_difference_of_vocabularies_is_refused() -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2}
    assert shared_vocabulary(vocabulary) == shared_vocabulary(vocabulary, dict(vocabulary)) == 3
    with pytest.raises(ModelError, match=r"1 tokens differ \('d' is None in the target and 3 in the draft\)"):
        shared_vocabulary(vocabulary, {**vocabulary, "d": 3})
    with pytest.raises(ModelError, match=r"2 tokens differ \('b' is 1 in the target and 2 in the draft, 'c'"):
        shared_vocabulary(vocabulary, {"a": 0, "b": 2, "c": 1})
    check_vocabulary(3, {"padded": 8, "exact": 3})
    with pytest.raises(ModelError, match="ids up to 2, but model 'small' has 2 tokens"):
        check_vocabulary(3, {"padded": 8, "small": 2})


def test_tokenizers_and_vocabularies_are_compared_before_any_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    build("llama", vocab_size=500).save_pretrained(small)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ZOO / "target" / name, small)
    experiment = replace(resolve("arith_quick"), draft=ModelConfig(str(small), vocabulary="same"))

    def fail(*arguments: Any, **more: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"ids up to 591, but model '.*small' has 500 tokens"):
        load_pair(experiment, {"target", "draft"})
    spec = json.loads((small / "tokenizer.json").read_text())
    spec["model"]["vocab"]["Ġhas"], spec["model"]["vocab"]["Ġit"] = (spec["model"]["vocab"][k] for k in ("Ġit", "Ġhas"))
    (small / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match="do not share a tokenizer: 2 tokens differ"):
        load_pair(experiment, {"target", "draft"})


def test_a_tokenizer_from_elsewhere_can_be_named(folder: Callable[..., Path]) -> None:
    config = ModelConfig(str(folder("llama")), tokenizer="zoo:target")
    assert loading.load_tokenizer(config).get_vocab() == loading.load_tokenizer(ModelConfig("zoo:draft")).get_vocab()


def test_too_little_memory_says_what_to_change(wide: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.96 GiB. GPU 0 has 9.10 GiB free.\nmore")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(
        ModelError,
        match=r"does not fit \(bfloat16 on cpu\): its weights need about 0.00 GiB; CUDA.*9.10 GiB free.* Choose",
    ) as error:
        load_model(ModelConfig(str(wide["target"]), dtype="bfloat16"))
    assert "\n" not in str(error.value)


def test_a_kernel_that_bitsandbytes_lacks_is_no_matter_for_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its warning goes to whoever listens to logs, and to standard error where nobody does, unless it is told."""
    name = "bitsandbytes.backends.cpu.ops"
    monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    loading._placement(ModelConfig("x", quantization="nf4"))
    with monkeypatch.context() as nobody:
        nobody.setattr(logging.getLogger(), "handlers", [])
        logging.getLogger(name).warning("Failed to load CPU gemm_4bit_forward from kernels-community")
    assert capsys.readouterr().err == ""
    logging.getLogger(name).warning("Failed to load CPU gemm_4bit_forward from kernels-community")
    assert "Failed to load CPU gemm" in caplog.text
