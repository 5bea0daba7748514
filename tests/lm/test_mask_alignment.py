"""Masks that reach attention start at a 16-byte aligned address, on every path.

On CUDA an additive mask whose first value is anywhere else ends in "misaligned address". PyTorch copies a mask of an
uneven width by itself, but never looks at where one starts. A CPU reads both, so that the addresses are asserted here.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from helpers.model_folders import build, disturbed
from helpers.seeded_bugs import ALIGNMENT_BUGS, Bug, mutated
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless, Replay
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine, Request, ScoreRequest
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.model import CHUNK, Branches, Feed
from specexp.lm.runtime import ModelConfig

ALIGNMENT = 16  # bytes
DTYPES = [torch.float32, torch.bfloat16]
LONG = {"max_position_embeddings": 1024}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LONG),
    "every head its own key": ("llama", {**LONG, "num_key_value_heads": 4}),
    "a window": ("mistral_window", LONG),
    "a window, one head a key": ("mistral_window", {**LONG, "num_key_value_heads": 4}),
}
TEXT = tuple(random.Random(1).randrange(3, 96) for _ in range(60))
DECODERS: dict[str, Any] = {
    "baseline": Baseline(Warp()),
    "chain": Chain(DraftModel(4), Lossless(), Warp()),
    "lookup": Chain(Lookup(4, 2), Lossless(), Warp()),
    "replay": Chain(Replay(TEXT, 6, DraftModel(3)), Lossless(), Warp()),  # mining's
    "specexec": SpecExec(12, 4, Warp(), parallel_branches=3),
}


class Masks:
    """The shapes of masks that attention was given, each asserted to start where it may."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    @property
    def widths(self) -> set[int]:
        return {shape[-1] for shape in self.shapes}


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Masks:
    seen, attend = Masks(), functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *a: Any, **k: Any) -> Any:
        for name, each in {"query": query, "key": key, "value": value, "mask": attn_mask}.items():
            assert each is None or each.data_ptr() % ALIGNMENT == 0, f"the {name} {tuple(each.shape)} is misaligned"
        if attn_mask is not None:
            seen.shapes.append(tuple(attn_mask.shape))
        return attend(query, key, value, attn_mask, *a, **k)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    return seen


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pair_of(shape: str, dtype: torch.dtype, **more: Any) -> dict[str, HFModel]:
    family, sizes = SHAPES[shape]
    target = build(family, **sizes)
    modules = {"target": target, "draft": disturbed(target, 0.06)}
    return {role: HFModel(module.to(dtype), role, **more) for role, module in modules.items()}


def ids(model: HFModel, num: int, seed: int = 0) -> Tensor:
    rng = random.Random(seed)
    return model.ids([rng.randrange(3, 96) for _ in range(num)])


def branches(base: int) -> Branches:
    return Branches(base, [0, 1, 1, 2, 2], [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4]])


def everything(model: HFModel) -> None:
    """Steps, chains, trees and pieces of prompts behind sequences of every length up to twice an alignment's values."""
    session = model.session()
    for start in range(1, 17):
        session.feed(ids(model, 1), 1)
        for num in (1, 3):
            session.feed(ids(model, num), num)
            session.truncate(start)
        session.feed(ids(model, 5), 5, True, branches(start))
        session.truncate(start)
    session.truncate(3)
    session.feed(ids(model, CHUNK + 7), 1)


def test_sessions(masks: Masks, shape: str, dtype: torch.dtype) -> None:
    everything(pair_of(shape, dtype)["target"])
    assert set(range(4, 22)) <= masks.widths, "every alignment came up"
    assert max(masks.widths) == CHUNK + 10


@pytest.mark.parametrize("shape", ["llama", "a window"])
def test_recordings(masks: Masks, shape: str, dtype: torch.dtype) -> None:
    """What is recorded, prompts too, under masks as wide as the pool and as buckets."""
    everything(pair_of(shape, dtype, graphs=Tape())["target"])
    assert {128, 2 * CHUNK} <= masks.widths


@pytest.mark.parametrize("shape", ["llama", "a window"])
def test_transformers_forward(masks: Masks, shape: str, dtype: torch.dtype) -> None:
    everything(pair_of(shape, dtype, forward="transformers")["target"])
    assert set(range(6, 22)) <= masks.widths


def test_offloaded_weights(masks: Masks, tmp_path: Path) -> None:
    build("llama", **LONG).save_pretrained(tmp_path)
    model = load_model(ModelConfig(str(tmp_path), offload="cpu"))
    assert model.offloaded
    everything(model)
    assert set(range(6, 22)) <= masks.widths


@pytest.mark.parametrize("shape", ["llama", "a window"])
def test_rows_of_different_lengths(masks: Masks, shape: str, dtype: torch.dtype) -> None:
    model = pair_of(shape, dtype)["target"]
    sessions = model.sessions(4)
    for turn in range(17):
        feeds = []
        for row, session in enumerate(sessions):
            if (turn + row) % 5 != 4:
                tree = branches(session.length) if (turn + row) % 3 == 0 else None
                feeds.append(Feed(session, ids(model, 5 if tree else 1 + (turn * row) % 4), 1, False, tree))
        model.feed(feeds)
        for row, session in enumerate(sessions):
            session.truncate(min(session.length, turn + 3 * row + 1))
    assert len({width % 8 for width in masks.widths}) == 8


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("method", DECODERS)
def test_methods(masks: Masks, method: str, captured: bool) -> None:
    models = pair_of("a window", torch.float32, graphs=Tape() if captured else "off")
    for prompt in ([7, 8], list(TEXT[:21])):
        Engine(models).generate(DECODERS[method], prompt, 24, CertainRng())
    if not captured:
        requests = [Request(DECODERS[method], list(TEXT[:n]), 24, CertainRng()) for n in (2, 9, 30, 5)]
        assert len(list(Engine(models, max_batch_size=3).generate_all(requests))) == 4
    assert masks.shapes


def test_a_search_for_labels(masks: Masks) -> None:
    """Looks and replayed texts behind prefixes that the caches hold, as mining asks for them."""
    models = pair_of("llama", torch.float32)

    def searching(prompt: list[int]) -> Iterator[Any]:
        for cut in range(1, 18):
            head = [*prompt, *TEXT[:cut]]
            yield ScoreRequest("draft", head, list(TEXT[cut : cut + 9]))
            yield ScoreRequest("target", head, [5], hidden=True)
            yield Request(DECODERS["replay"], [*head, 5], 8, CertainRng())

    for rows in (1, 2):
        engine = Engine(models, reuse=True, max_batch_size=rows)
        coroutines: Any = [searching([7, 8, 9]), searching([5, 6])]
        assert len(list(engine.run_all(coroutines))) == 2
    assert len({width % 8 for width in masks.widths}) == 8


def test_a_misaligned_mask_is_noticed(masks: Masks) -> None:
    """Else the tests above would show nothing."""
    call: Callable[..., Any] = functional.scaled_dot_product_attention
    x, mask = torch.zeros(1, 1, 8, 8), torch.zeros(8, 32)
    call(x, x, x, attn_mask=mask[:, 4:12])
    for start in (1, 2, 3, 5):
        with pytest.raises(AssertionError, match=r"the mask \(8, 8\) is misaligned"):
            call(x, x, x, attn_mask=mask[:, start : start + 8])


@pytest.mark.slow
@pytest.mark.parametrize("bug", ALIGNMENT_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(masks: Masks, bug: Bug) -> None:
    family, sizes = SHAPES["a window, one head a key"]
    with mutated(bug):
        model = importlib.import_module("specexp.lm.hf.hf_model").HFModel(build(family, **sizes), "m")
        if model.native is None:  # the check at load has met it already
            assert "is misaligned" in model.why_not_native
            return
        with pytest.raises(AssertionError, match="is misaligned"):
            everything(model)
