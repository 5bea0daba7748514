"""`numerics: invariant` reaches the experiment; where it cannot hold it is refused by name before weights are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specexp import config
from specexp.config.experiment import LATER_OF_EXPERIMENT, settings_hash
from specexp.errors import ConfigError, ModelError
from specexp.evaluation import divergence
from specexp.evaluation.equality import Difference
from specexp.pair import first_look
from specexp.pair.loading import load_pair

WAY_OUT = "or numerics to fastest."
MOVED = "only the native forward is invariant, on weights that stay on one device as they are; set"
TARGET = {"model": "zoo:target"}
ENGINE = {"engine": {"url": "http://127.0.0.1:1/v1", "model": "m", "methods": {"a": {}}}, "methods": ["engine:a"]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another word": ({"numerics": "exact"}, "numerics is 'exact'; unknown numerics 'exact'"),
    "offload": (
        {"target": {**TARGET, "offload": "cpu"}},
        f"numerics is invariant, but target's offload is cpu: {MOVED} offload to none, {WAY_OUT}",
    ),
    "quantization": (
        {"draft": {"model": "zoo:draft", "quantization": "nf4"}},
        f"numerics is invariant, but draft's quantization is nf4: {MOVED} quantization to none, {WAY_OUT}",
    ),
    "several processes": (
        {"target": {**TARGET, "tensor_parallel": 2}},
        f"numerics is invariant, but target's tensor_parallel is 2: {MOVED} tensor_parallel to 1, {WAY_OUT}",
    ),
    "spread layers": (
        {"target": {**TARGET, "device": "auto"}},
        f"numerics is invariant, but target's device is auto, which spreads its layers; set device to one, {WAY_OUT}",
    ),
    "a head": (
        {"draft": "eagle3:a-folder", "methods": "speculative"},
        "numerics is invariant, but the draft, eagle3:a-folder, is a head, which is not computed invariantly; name a"
        " draft model, or set numerics to fastest.",
    ),
    "the toy pair": (
        {"pair": "toy"},
        f"numerics is invariant, but the toy pair has no weights; set pair to another, {WAY_OUT}",
    ),
    "a served engine": (ENGINE, "numerics is invariant, but a served engine computes by its own; leave it out."),
}


def resolved(**settings: Any) -> config.Experiment:
    return config.resolve("arith_quick", settings)


@pytest.mark.parametrize("case", REFUSED)
def test_where_it_cannot_hold_it_is_refused_in_one_sentence(case: str) -> None:
    given, words = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        resolved(**{"numerics": "invariant", **given})
    (fault,) = error.value.faults
    assert fault.startswith(words)
    if "numerics" not in given:  # nothing else is wrong with these settings
        resolved(**given)


def test_the_value_reaches_the_experiment_and_the_default_keeps_older_hashes() -> None:
    plain, invariant = resolved(), resolved(numerics="invariant")
    assert (plain.numerics, invariant.numerics) == ("fastest", "invariant")
    assert resolved(numerics="fastest").hash == plain.hash != invariant.hash
    older = {key: value for key, value in plain.as_dict().items() if key != "numerics"}
    assert settings_hash(older) == plain.hash
    assert LATER_OF_EXPERIMENT["numerics"] == "fastest"


def test_it_is_part_of_what_labels_and_drafters_are_made_with(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("numerics: invariant\n")
    for resolve, more in ((config.resolve_mining, {}), (config.resolve_drafter, {"skip": "0"})):
        plain = resolve("arith_quick", more)
        assert "numerics" not in plain.as_dict()
        invariant = resolve("arith_quick", {**more, "config": str(file)})
        assert invariant.as_dict()["numerics"] == "invariant"
        assert invariant.hash != plain.hash


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "experts": (
        {"model_type": "mixtral", "num_experts_per_tok": 2, "architectures": ["MixtralForCausalLM"]},
        "the products of its experts depend on which tokens are fed together",
    ),
    "another family": (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        "the native forward does not know its family (gpt2)",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_rules_it_out_is_refused_before_anything_is_imported(case: str, tmp_path: Path) -> None:
    values, words = CONFIGS[case]
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "max_position_embeddings": 160}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **values}))
    given = {"target": str(tmp_path), "methods": "baseline"}
    first_look.check(resolved(**given))
    with pytest.raises(ModelError) as error:
        first_look.check(resolved(**given, numerics="invariant"))
    assert str(error.value) == (
        f"numerics is invariant, but model '{tmp_path}' cannot be: {words}; set numerics to fastest."
    )


@pytest.mark.slow
def test_the_pair_is_loaded_invariantly_and_a_draft_of_its_layers_is_so_too() -> None:
    for draft in ("zoo:draft", "layers:0-1"):
        for numerics in ("fastest", "invariant"):
            pair = load_pair(resolved(numerics=numerics, draft=draft), {"target", "draft"})
            for model in pair.models.values():
                native: Any = model.native  # type: ignore[attr-defined]
                assert native.invariant == (numerics == "invariant")


@pytest.mark.parametrize("numerics,why", [("fastest", "near tie"), ("invariant", "unexplained")])
def test_a_near_tie_explains_no_difference_with_invariant_numerics(
    numerics: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tie = Difference("speculative", "p", 0, 1, 2, 0.0, True)
    monkeypatch.setattr(divergence, "difference", lambda *given: tie)
    record: Any = {"prompt_id": "p", "turn": 0, "label": "speculative", "repeat": 0, "seed": 0, "token_ids": [1]}
    experiment = replace(resolved(), numerics=numerics)
    engine: Any = None
    assert divergence.why(engine, experiment, [3], record, [2]) == why
