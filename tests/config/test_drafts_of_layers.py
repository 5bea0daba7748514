"""`draft: {layers: ...}`: the draft has the target's settings, and none of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from specexp import config
from specexp.config.experiment import settings_hash
from specexp.errors import ConfigError

REFUSED = {
    "draft: {layers: 0-3, dtype: bfloat16}": "draft: dtype and layers are given; a draft on the target has the"
    " target's settings: leave one out.",
    "draft: {layers: 0-3, model: x}": "draft: model and layers are given;",
    "target: {layers: 0-3}": "target: layers is a draft's; name the model of the target, and give it as draft's.",
    "target: layers:0-3": "target: layers is a draft's;",
    "target: {eagle3: a}": "target: eagle3 is a draft's;",
    "draft: {layers: 0-3, eagle3: a}": "draft: eagle3 and layers are given;",
    "draft: {eagle3: a, dtype: bfloat16}": "draft: dtype and eagle3 are given; a draft on the target has the target's",
    "draft: {eagle3: a}\nmethods: [draft_only]": "method 'draft_only' needs a draft that is a model by itself, but",
    "draft: {eagle3: a}\njudge: b": "method 'autojudge' needs a draft that is a model by itself, but eagle3:a is a",
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


def test_a_head_by_name() -> None:
    """In a file, as one word, and by its address in the store; its own methods go without draft_only."""
    for given in ({"eagle3": "a/b"}, "eagle3:a/b"):
        resolved = config.resolve("arith_quick", {"target": {"model": "x/y", "dtype": "bfloat16"}, "draft": given})
        assert (resolved.draft.eagle3, resolved.draft.model, resolved.draft.dtype) == ("a/b", "x/y", "bfloat16")
        assert resolved.pair == "x/y+eagle3:a/b"
        assert [method.label for method in resolved.methods] == ["baseline", "speculative"]
    resolved = config.resolve("arith_quick", {"draft": "models:/drafter@champion"})
    assert resolved.draft.eagle3 == "models:/drafter@champion"


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
