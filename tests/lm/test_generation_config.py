"""What a folder's generation_config.json sets: suppressed ids hold for everyone, the rest is named and not applied."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from helpers.cli_runner import evaluate, records, refused, tiny
from specexp import config
from specexp.benchmark import peers
from specexp.benchmark.peers import Peer
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine
from specexp.evaluation.equality import noise_of
from specexp.lm.hf import generation_config
from specexp.lm.hf.hf_model import HFModel
from specexp.pair.loading import load_pair

GREEDY = Warp()
LENGTH = 14
PROMPT = [5, 9, 11, 40, 5, 9]
DECODERS: dict[str, Decoder] = {
    "baseline": Baseline(GREEDY),
    "draft_only": Baseline(GREEDY, "draft"),
    "speculative": Chain(DraftModel(4), Lossless(), GREEDY),
    "lookup": Chain(Lookup(4, 2), Lossless(), GREEDY),
    "specexec": SpecExec(8, 1, GREEDY, 4, 96),  # every id is a candidate at the root, suppressed ones included
}
Pair = Callable[[str], dict[str, HFModel]]
# Everything that would change a greedy output, and some that would change a sampled one.
LOUD: dict[str, Any] = {
    "repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "bad_words_ids": [[7], [30]], "min_new_tokens": 20,
    "min_length": 20, "begin_suppress_tokens": list(range(3, 60)), "forced_eos_token_id": 9, "forced_bos_token_id": 8,
    "sequence_bias": [[[12], 50.0]], "exponential_decay_length_penalty": [2, 1.5], "encoder_repetition_penalty": 2.0,
    "encoder_no_repeat_ngram_size": 1, "num_beams": 2, "do_sample": True, "min_p": 0.3, "typical_p": 0.4,
}  # fmt: skip


def plain(model: HFModel, suppressed: list[int]) -> list[int]:
    """What `generate()` emits with these ids suppressed and nothing else set."""
    settings = GenerationConfig(
        max_new_tokens=LENGTH, do_sample=False, suppress_tokens=suppressed or None, pad_token_id=0
    )
    with torch.inference_mode(), peers.without_settings(model.module):
        ids = model.module.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT)), generation_config=settings
        )
    return [int(i) for i in ids[0, len(PROMPT) :]]


def suppressing(models: dict[str, HFModel], ids: list[int]) -> dict[str, HFModel]:
    return {
        role: HFModel(copy.deepcopy(model.module), model.name, model.num_valid_ids, suppressed=ids)
        for role, model in models.items()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # the native forward, and transformers'
def test_suppressed_ids_are_emitted_by_no_method(pair: Pair, family: str) -> None:
    free = plain(pair(family)["target"], [])
    ids = sorted(set(free[::3]))
    assert ids
    models = suppressing(pair(family), [*ids, 400])  # one is beyond the vocabulary
    assert (models["target"].native is None) == (family == "gpt2")
    for name, decoder in DECODERS.items():
        role: Any = "draft" if name == "draft_only" else "target"
        out = Engine(models).generate(decoder, PROMPT, LENGTH, CertainRng()).token_ids
        assert out == plain(models[role], ids), name
        assert not set(out) & set(ids)
    warp = Warp(1.0)
    for decoder in (Baseline(warp), Chain(DraftModel(4), Lossless(), warp), SpecExec(8, 2, warp, 4)):
        out = Engine(models).generate(decoder, PROMPT, LENGTH, rng_for(1.0, 3, "p")).token_ids
        assert len(out) == LENGTH
        assert not set(out) & set(ids)


def test_a_suppressed_id_is_no_noise() -> None:
    row = torch.tensor([1.0, float("-inf"), -3.0])
    assert noise_of("bfloat16", row) == pytest.approx(3 * 2.0**-7)


def loud(module: Any) -> Any:
    copied = copy.deepcopy(module)
    copied.generation_config = GenerationConfig(**copy.deepcopy(LOUD), use_cache=False)
    return copied


def test_no_setting_of_a_folder_reaches_a_peer_or_a_method(pair: Pair) -> None:
    quiet = pair("llama")
    models = {role: HFModel(loud(model.module), model.name) for role, model in quiet.items()}
    expected = plain(quiet["target"], [])
    assert Engine(models).generate(DECODERS["speculative"], PROMPT, LENGTH, CertainRng()).token_ids == expected
    calls = {
        "generate": Peer(models, ()),
        "assisted": Peer(models, (), 4),
        "lookup": Peer(models, (), options=peers.lookup()),
    }
    for name, peer in calls.items():
        call = peer.prepare(PROMPT, LENGTH)
        with call.ready(0):
            assert call.emitted(call.run()) == expected, name
    suppressed = sorted(set(expected[::3]))
    models = {role: HFModel(model.module, model.name, suppressed=suppressed) for role, model in models.items()}
    call = replace(calls["assisted"], models=models).prepare(PROMPT, LENGTH)
    with call.ready(0):
        assert call.emitted(call.run()) == plain(quiet["target"], suppressed)
    assert models["target"].module.generation_config.repetition_penalty == LOUD["repetition_penalty"]


def test_what_is_not_applied_is_what_would_change_an_output() -> None:
    """Of everything in LOUD; of a quiet folder, nothing."""
    values = generation_config.not_applied(GenerationConfig(**copy.deepcopy(LOUD), temperature=0.6, top_p=0.9))
    assert values.keys() == LOUD.keys() - {"do_sample"}
    quiet = GenerationConfig(**GenerationConfig._get_default_generation_params(), eos_token_id=[1, 2])
    assert not generation_config.not_applied(quiet)
    assert not generation_config.not_applied(GenerationConfig(min_p=0.3))  # nothing is drawn


def write_settings(folder: Path, **more: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **more}))


def test_the_targets_suppressed_ids_are_both_models_and_other_settings_are_noted(tmp_path: Path) -> None:
    target = tiny(tmp_path / "target")
    write_settings(target, suppress_tokens=[5, 7, 9000], repetition_penalty=1.3)
    write_settings(tiny(tmp_path / "draft", seed=1), suppress_tokens=[11], min_new_tokens=3)
    (tmp_path / "mine.yaml").write_text(f"target: {target}\ndraft: {tmp_path / 'draft'}\n")
    experiment = config.resolve("arith_quick", {"config": str(tmp_path / "mine.yaml")})
    loaded = load_pair(experiment, {"target", "draft"})
    models: Any = loaded.models
    assert [model.suppressed for model in models.values()] == [[5, 7], [5, 7]]
    assert models["target"].facts()["generation_config"] == {
        "suppress_tokens": [5, 7], "not_applied": {"repetition_penalty": 1.3},
    }  # fmt: skip
    assert models["draft"].facts()["generation_config"]["not_applied"] == {"min_new_tokens": 3}
    (note,) = [note for note in loaded.notes if "generation_config" in note]
    assert note.startswith(f"the generation_config of model '{target}' sets repetition_penalty 1.3;")
    (draft,) = load_pair(experiment, {"draft"}).models.values()
    assert list(getattr(draft, "suppressed", ())) == [5, 7]


@pytest.mark.slow
def test_a_folder_with_settings_is_noted_and_its_suppressed_ids_hold(workplace: Path, tmp_path: Path) -> None:
    target, draft = tiny(tmp_path / "target"), tiny(tmp_path / "draft", seed=1)
    Path("mine.yaml").write_text(f"target: {target}\ndraft: {draft}\nlimit: 2\n")
    arguments = ["--config", "mine.yaml", "--max-new-tokens", "16", "--show", "1"]
    arguments += ["--methods", "baseline,draft_only,speculative,lookup,specexec", "--gamma", "4"]
    assert evaluate(*arguments, "--output", "free").exit_code == 0
    emitted = sorted({i for record in records(workplace / "free") for i in record["token_ids"]} - {2})
    write_settings(target, suppress_tokens=emitted, repetition_penalty=1.3, min_new_tokens=5)
    write_settings(draft, repetition_penalty=7.0)
    result = evaluate(*arguments, "--output", "out")
    assert result.exit_code == 0, result.output
    notes = [line for line in result.output.splitlines() if line.startswith("note: the generation_config")]
    assert len(notes) == 1
    assert f"'{target}' sets repetition_penalty 1.3, min_new_tokens 5" in notes[0]
    for record in records(workplace / "out"):
        assert not set(record["token_ids"]) & set(emitted), record["label"]
    (facts,) = json.loads((workplace / "out" / "environments.json").read_text()).values()
    for role, unused in (
        ("target", {"repetition_penalty": 1.3, "min_new_tokens": 5}),
        ("draft", {"repetition_penalty": 7.0}),
    ):
        assert facts["models"][role]["generation_config"] == {"suppress_tokens": emitted, "not_applied": unused}


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"suppress_tokens": [3, "x"]}', "has suppress_tokens [3, 'x'] in its generation_config; it must be a list"),
        ('{"suppress_tokens": [-1]}', "has suppress_tokens [-1] in its generation_config; it must be a list"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(workplace: Path, tmp_path: Path, text: str, message: str) -> None:
    target = tiny(tmp_path / "target")
    (target / "generation_config.json").write_text(text)
    (target / "model.safetensors").unlink()  # before any weights
    Path("mine.yaml").write_text(f"target: {target}\ndraft: {target}\nlimit: 2\n")
    refused(evaluate("--config", "mine.yaml", "--output", "out"), message, workplace)
