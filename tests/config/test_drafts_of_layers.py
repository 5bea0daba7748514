"""`draft: {layers: ...}`: the draft has the target's settings, and none of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from specexp import config
from specexp.config.experiment import settings_hash
from specexp.errors import ConfigError

REFUSED = {
    "draft: {layers: 0-3, dtype: bfloat16}": "draft: dtype and layers are given; a draft of the target's layers has the"
    " target's settings: leave one out.",
    "draft: {layers: 0-3, model: x}": "draft: model and layers are given;",
    "target: {layers: 0-3}": "target: layers are a draft's; name the model of the target, and give them as draft's.",
    "target: layers:0-3": "target: layers are a draft's;",
    "draft: {layers: 3-0}": "layers is '3-0': it must be ranges of layers from 0 on, in ascending order,",
    "draft: {layers: [0, 1]}": "it must be ranges of layers from 0 on",
    "draft: 'layers:'": "it must be ranges of layers from 0 on",
    "{pair: toy, draft: {layers: 0-3}}": "draft: pair 'toy' has no model to replace;",
}


def test_the_draft_has_the_targets_settings() -> None:
    given = config.resolve("arith_quick", {"target": {"model": "a/b", "dtype": "bfloat16"}, "draft": {"layers": "0-3"}})
    assert given.draft.layers == "0-3"
    assert (given.draft.model, given.draft.dtype) == ("a/b", "bfloat16")
    assert given.pair == "a/b+layers:0-3"
    assert config.resolve("arith_quick", {"draft": "layers: 0 - 3"}).draft.layers == "0-3"
    assert config.resolve("arith_quick", {"draft": {"layers": 4}}).draft.layers == "4"


def test_layers_and_a_model_replace_each_other(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("draft: {layers: 0-3}\n")
    both = config.resolve("arith_quick", {"config": str(file), "draft": "zoo:draft"})
    assert (both.draft.layers, both.draft.model) == ("", "zoo:draft")
    file.write_text("draft: {model: a/b, revision: x, dtype: bfloat16}\n")
    both = config.resolve("arith_quick", {"config": str(file), "draft": "layers:0-3"})
    assert (both.draft.layers, both.draft.model, both.draft.dtype) == ("0-3", "zoo:target", "float32")


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_go_together(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text.strip("{}") if text.startswith("{") else text)
    if text.startswith("{pair"):
        file.write_text("pair: toy\ndraft: {layers: 0-3}\n")
    with pytest.raises(ConfigError) as caught:
        config.resolve("arith_quick", {"config": str(file)})
    assert REFUSED[text] in str(caught.value)


def test_older_hashes_stay() -> None:
    settings = config.resolve("arith_quick").as_dict()
    older = {**settings}
    for role in ("target", "draft"):
        older[role] = {key: value for key, value in settings[role].items() if key != "layers"}
    assert settings_hash(older) == settings_hash(settings)
    layered = config.resolve("arith_quick", {"draft": "layers:0-3"})
    assert layered.hash not in (settings_hash(settings), config.resolve("arith_quick", {"draft": "layers:0-2"}).hash)
