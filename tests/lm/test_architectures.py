"""Every causal family that transformers builds from a config: right by every method, or refused by name.

docs/families.md says which; each row of it is compared with what happens on a tiny random model in float32. Plain
decoding is compared with `generate()`, chains, prompt lookup and trees with plain decoding. A family that is not tried
there is one that no tiny model can be made of.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

from helpers import tiny_models
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine
from specexp.errors import ModelError
from specexp.lm.hf import model_config
from specexp.lm.hf.hf_model import HFModel

DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"
RIGHT, REFUSED, UNTRIED = "right", "refused", "not tried"
LENGTH = 20
GREEDY = Warp()
CHAINS: dict[str, Decoder] = {
    "speculative": Chain(DraftModel(4), Lossless(), GREEDY),
    "lookup": Chain(Lookup(4, 2), Lossless(), GREEDY),
}
TREE = SpecExec(8, 3, GREEDY, 4)
# Variants that decode otherwise than the family's own row says.
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    "falcon with ALiBi": ("falcon", {"alibi": True}, (RIGHT, REFUSED)),
    "gpt_neo without local layers": ("gpt_neo", {"attention_types": [[["global"], 2]]}, (RIGHT, RIGHT)),
    "llama4 without temperature tuning": ("llama4_text", {"attn_temperature_tuning": False}, (RIGHT, RIGHT)),
    "llama4 with chunks": (
        "llama4_text",
        {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 8},
        (RIGHT, REFUSED),
    ),
    "an encoder": ("bert", {"is_decoder": False}, (REFUSED, REFUSED)),
    "gemma 3n without sharing": ("gemma3n_text", {"num_kv_shared_layers": 0}, (RIGHT, RIGHT)),
}
NAMED = ("gpt_neo", "gemma3n_text", "openai-gpt")  # one that is refused for trees, one that is not, one for all
SHARING = ("gemma3n_text", "gemma4_text")  # layers that keep no keys of their own


def documented() -> dict[str, tuple[str, str]]:
    """(plain decoding and chains, trees) by model type, as docs/families.md has them."""
    rows: dict[str, tuple[str, str]] = {}
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1] in (RIGHT, REFUSED, UNTRIED):
            for kind in re.findall(r"`([^`]+)`", cells[0]):
                assert kind not in rows, f"{kind} has two rows"
                rows[kind] = (cells[1], cells[2])
    return rows


def prompts() -> Iterator[list[int]]:
    """One shorter than the windows, and one that is longer and repeats itself."""
    rng = random.Random(0)
    yield [rng.randrange(3, 90) for _ in range(3)]
    long = [rng.randrange(3, 90) for _ in range(21)]
    yield long[:10] + long[2:8] + long[10:]


def generated(module: Any, prompt: list[int]) -> list[int]:
    module.generation_config = GenerationConfig()
    settings = GenerationConfig(max_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        ids = module.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(), generation_config=settings
        )
    return [int(i) for i in ids[0, len(prompt) :]]


def outcome(kind: str, **more: Any) -> tuple[str, str]:
    """What comes of this family; fails where an output is another than it should be."""
    try:
        module = tiny_models.build(kind, **more)
    except Exception:  # no tiny model can be made: only its config says something
        return (REFUSED, REFUSED) if model_config.refusal(CONFIG_MAPPING[kind]()) else (UNTRIED, UNTRIED)
    try:
        models: Any = {"target": HFModel(module, kind), "draft": HFModel(tiny_models.disturbed(module), kind)}
        models["target"].check_cache()
    except ModelError:
        return REFUSED, REFUSED
    engine, trees = Engine(models), RIGHT
    for prompt in prompts():
        expected = generated(module, prompt)
        assert engine.generate(Baseline(GREEDY), prompt, LENGTH, CertainRng()).token_ids == expected, "plain decoding"
        for name, chain in CHAINS.items():
            assert engine.generate(chain, prompt, LENGTH, CertainRng()).token_ids == expected, name
        try:
            got = Engine(models).generate(TREE, prompt, LENGTH, CertainRng()).token_ids
        except ModelError:
            trees = REFUSED
        else:
            assert got == expected, "specexec"
    return RIGHT, trees


def test_every_family_has_a_row() -> None:
    """Every one of the release that the document names; a later one may have more."""
    assert set(documented()) <= set(FAMILIES)
    if f"transformers {'.'.join(transformers.__version__.split('.')[:2])}" in " ".join(DOCS.read_text().split()):
        assert set(documented()) == set(FAMILIES)


@pytest.mark.parametrize("kind", NAMED)
def test_a_named_family_is_right_or_refused_as_documented(kind: str) -> None:
    assert outcome(kind) == documented()[kind]


@pytest.mark.parametrize("kind", SHARING)
def test_the_cache_of_layers_that_share_keys_changes_nothing(kind: str) -> None:
    """Cut back by chains and rearranged by trees, it leaves the outputs and counts of decoding without a cache."""
    module = tiny_models.build(kind)
    assert module.config.num_kv_shared_layers
    models: Any = {"target": HFModel(module, kind), "draft": HFModel(tiny_models.disturbed(module), kind)}
    for decoder in (CHAINS["speculative"], TREE):
        cached, without = (
            Engine(models, cached=cached).generate(decoder, [5, 9, 11, 40], 12, CertainRng())
            for cached in (True, False)
        )
        assert cached.token_ids == without.token_ids == generated(module, [5, 9, 11, 40])[:12]
        assert cached.accepted_histogram == without.accepted_histogram


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_right_or_refused(name: str) -> None:
    kind, more, expected = VARIANTS[name]
    assert outcome(kind, **more) == expected


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_family_is_right_or_refused_as_documented(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = documented().get(kind, (UNTRIED, UNTRIED))
    if expected == (UNTRIED, UNTRIED):
        pytest.skip("not in the document, or no tiny model can be made of it")
    actual = outcome(kind)
    with capsys.disabled():
        print(f"\n  {kind:26s} plain and chains: {actual[0]:10s} trees: {actual[1]}", end="")
    assert actual == expected
