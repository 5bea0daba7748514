"""Every causal family that transformers builds from a config: right by every method, or refused by name.

docs/models.md says which, and on which forward (`helpers/family_table.py`, which fills it). Each row is compared with
what comes of decoding with a tiny random model in float32.
"""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from helpers import tiny_models
from helpers.block_cases import BUILT
from helpers.family_table import (
    CHAIN,
    DOCS,
    FAMILIES,
    HEADINGS,
    NONE,
    REFUSED,
    RIGHT,
    TREE,
    UNTRIED,
    Row,
    documented,
    generated,
    row,
    table,
)
from specexp.decoding.rng import CertainRng
from specexp.engine import Engine
from specexp.lm.hf.hf_model import HFModel

# Variants that decode otherwise than the family's own row says: chain and tree.
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    "falcon with ALiBi": ("falcon", {"alibi": True}, (RIGHT, REFUSED)),
    "gpt_neo without local layers": ("gpt_neo", {"attention_types": [[["global"], 2]]}, (RIGHT, RIGHT)),
    "llama4 without temperature tuning": ("llama4_text", {"attn_temperature_tuning": False}, (RIGHT, RIGHT)),
    "llama4 with chunks": (
        "llama4_text",
        {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 8},
        (RIGHT, REFUSED),
    ),
    "granite's hybrid type without recurrent layers": (
        "granitemoehybrid",
        {"layer_types": ["full_attention"] * 2, "position_embedding_type": "rope"},
        (RIGHT, RIGHT),
    ),
    "nemotron h without recurrent layers": (
        "nemotron_h",
        {"layers_block_type": ["moe", "full_attention", "mlp", "full_attention"]},
        (RIGHT, RIGHT),
    ),
    "an encoder": ("bert", {"is_decoder": False}, (REFUSED, REFUSED)),
    "gemma 3n without sharing": ("gemma3n_text", {"num_kv_shared_layers": 0}, (RIGHT, RIGHT)),
}
NAMED = ("gpt_neo", "gemma3n_text", "openai-gpt", "lfm2", "xlnet")  # of five kinds
SHARING = ("gemma3n_text", "gemma4_text")  # layers that keep no keys of their own


def test_every_family_has_a_row() -> None:
    """Every one of the release that the document names; a later one may have more."""
    assert set(documented()) <= set(FAMILIES)
    if f"transformers {'.'.join(transformers.__version__.split('.')[:2])}" in " ".join(DOCS.read_text().split()):
        assert set(documented()) == set(FAMILIES)


def test_the_table_says_what_was_promised() -> None:
    rows = documented()
    native = [kind for kind, each in rows.items() if each.forward == "native"]
    right = [kind for kind, each in rows.items() if each.chain == each.lookup == each.batch == RIGHT]
    assert len(native) >= 50
    assert len(right) >= 150
    assert {each.recorded for each in rows.values() if each.forward == "native"} == {RIGHT}
    assert set(BUILT.values()) <= set(native)


def test_the_documents_table_is_as_the_command_writes_it() -> None:
    text = DOCS.read_text()
    start = text.index("| model types |")
    assert text[start : text.index("\n\n", start)] == table(documented())
    assert len(HEADINGS) == text[start : text.index("\n", start)].count("|") - 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NAMED)
def test_a_named_family_is_right_or_refused_as_documented(kind: str) -> None:
    assert row(kind) == documented()[kind]


@pytest.mark.parametrize("kind", SHARING)
def test_the_cache_of_layers_that_share_keys_changes_nothing(kind: str) -> None:
    """Cut back by chains and rearranged by trees, it leaves the outputs and counts of decoding without a cache."""
    module = tiny_models.build(kind)
    assert module.config.num_kv_shared_layers
    models: Any = {"target": HFModel(module, kind), "draft": HFModel(tiny_models.disturbed(module), kind)}
    for decoder in (CHAIN, TREE):
        cached, without = (
            Engine(models, cached=cached).generate(decoder, [5, 9, 11, 40], 12, CertainRng())
            for cached in (True, False)
        )
        assert cached.token_ids == without.token_ids == generated(module, [5, 9, 11, 40])[:12]
        assert cached.accepted_histogram == without.accepted_histogram


@pytest.mark.at_most(slow=4)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_right_or_refused(name: str) -> None:
    kind, more, expected = VARIANTS[name]
    result = row(kind, **more)
    assert (result.chain, result.tree) == expected


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_family_is_right_or_refused_as_documented(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = documented().get(kind, Row(NONE, *[UNTRIED] * 5))
    if expected.chain == UNTRIED:
        pytest.skip("not in the document, or no tiny model can be made of it")
    actual = row(kind)
    with capsys.disabled():
        print(f"\n  {kind:26s} {actual.forward}", end="")
    assert actual == expected
