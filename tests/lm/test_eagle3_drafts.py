"""What EAGLE-3 heads draft, against their equations on the whole text without a cache (`ReferenceHead`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny_models
from helpers.drafted_chains import Chains, watch_chains
from helpers.eagle3_heads import ReferenceHead
from helpers.tape import Tape
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless
from specexp.decoding.draft_length import NOMINAL
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.engine.request import Request
from specexp.lm.heads.loading import load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Branches
from specexp.lm.runtime import ModelConfig

FEW = (3, 4, 7, 9, 20, 21, 40, 41, 42, 60, 80, 90)
WARP = Warp(0.8)
LONG = [5, 20, 33, 41, 8, 15, 70, 3, 60]
# How heads differ: the ids that they score, and what their config says.
HEADS: dict[str, dict[str, Any]] = {
    "all ids": {},
    "few ids": {"drafted": FEW},
    "layers by default": {"layers": [1, 3, 4], "eagle_config": {}},
    "residual after the norm": {"norm_before_residual": True, "drafted": FEW},
}


def pair(
    folder: Path, family: str = "llama", forward: str = "auto", capture: Any = "off", **head: Any
) -> tuple[ReferenceHead, dict[Any, Any]]:
    layers = {"layer_types": ["linear_attention", "full_attention"] * 4} if family == "qwen3_next" else {}
    module = tiny_models.build(family, num_hidden_layers=8, **layers)
    target = HFModel(module, family, graphs=capture, forward=forward)
    reference = ReferenceHead(target, **head)
    return reference, {
        "target": target, "draft": load_head(ModelConfig(family, eagle3=str(reference.save(folder))), target)
    }  # fmt: skip


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> Chains:
    return watch_chains(monkeypatch)


def check(reference: ReferenceHead, seen: Chains) -> None:
    assert len(seen) >= 8
    for ids, chain in seen:
        tokens = chain.tokens.tolist()
        if tokens:
            assert torch.allclose(chain.q, WARP(reference.chain(ids, tokens[:-1])), atol=2e-5)


@pytest.mark.parametrize("head", HEADS)
def test_chains(tmp_path: Path, drafted: Any, head: str) -> None:
    reference, models = pair(tmp_path, **HEADS[head])
    for prompt in ([7], [5, 9], LONG):
        Engine(models).generate(Chain(DraftModel(4), Lossless(), WARP), prompt, 12, rng_for(0.8, 3, "p"))
    check(reference, drafted)


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize("head", HEADS)
def test_recorded_chains(tmp_path: Path, drafted: Any, head: str) -> None:
    """One replay for each chain, whatever it catches up on: drafts that were rejected, and tokens of others."""
    reference, models = pair(tmp_path, capture=Tape(), **HEADS[head])
    engine = Engine(models)
    in_turn = InTurn({"lookup": Lookup(5, 1), "draft": DraftModel(4)})
    adapts = DraftModel(4, costs=NOMINAL)
    for proposer, prompt in ((DraftModel(4), [5, 9]), (in_turn, LONG * 3), (DraftModel(4), LONG), (adapts, LONG)):
        engine.generate(Chain(proposer, Lossless(), WARP), prompt, 12, rng_for(0.8, 3, "p"))
    check(reference, drafted)
    (graphs,) = models["draft"].graph_pools.pools
    of_head = [chain for _, chain in drafted if chain.tokens.shape[0]]
    assert graphs.recordings.num_replays >= len(of_head) > 10
    assert graphs.recordings.num_captures <= 6


def test_chains_step_by_step_in_turn_and_without_a_cache(tmp_path: Path, drafted: Any) -> None:
    reference, models = pair(tmp_path, drafted=FEW)
    in_turn = InTurn({"lookup": Lookup(3, 1), "draft": DraftModel(3)})
    for proposer, cached in ((DraftModel(4, 0.02), True), (in_turn, True), (DraftModel(2), False)):
        decoder = Chain(proposer, Lossless(), WARP)
        Engine(models, cached=cached).generate(decoder, [*LONG, *LONG], 12, rng_for(0.8, 3, "p"))
    check(reference, drafted)


@pytest.mark.parametrize(("family", "forward"), [("llama", "transformers"), ("gpt2", "auto"), ("qwen3_next", "auto")])
def test_chains_behind_transformers_forward(tmp_path: Path, drafted: Any, family: str, forward: str) -> None:
    reference, models = pair(tmp_path, family, forward, drafted=FEW)
    Engine(models).generate(Chain(DraftModel(3), Lossless(), WARP), LONG, 12, rng_for(0.8, 3, "p"))
    check(reference, drafted)


@pytest.mark.parametrize("recorded", [False, True])
def test_chains_of_rows_decoded_together(tmp_path: Path, drafted: Any, recorded: bool) -> None:
    """The target's rows may be recorded, with the states that it keeps; the head's are not."""
    reference, models = pair(tmp_path, capture=Tape() if recorded else "off", drafted=FEW)
    decoder = Chain(DraftModel(3), Lossless(), WARP)
    texts = [5, 9], LONG, LONG[::-1]
    requests = [Request(decoder, prompt, 10, rng_for(0.8, i, "p")) for i, prompt in enumerate(texts)]
    assert len(dict(Engine(models, max_batch_size=3).generate_all(requests))) == 3
    check(reference, drafted)


def test_the_nodes_of_a_tree(tmp_path: Path) -> None:
    """Rows of a tree that grows in several feeds, after text whose last tokens were a path of another tree."""
    reference, models = pair(tmp_path, drafted=FEW)
    engine = Engine(models)
    text = [*LONG, *engine.generate(SpecExec(12, 4, Warp(), 3), LONG, 8, CertainRng()).token_ids]
    target, head = models["target"].session(), models["draft"].session()
    target.feed(models["target"].ids([*text[:-3], 11, text[-3], 12, text[-2]]), 0, branches=Branches(
        len(text) - 3, [0, 0, 1, 1], [[0], [1], [1, 2], [1, 3]]
    ))  # fmt: skip
    target.truncate(len(text) - 3, [len(text) - 2, len(text)])
    head.read(text, target)
    rows = [head.feed(models["draft"].ids(text), 1)[0]]
    nodes, parents = [3, 9, 40, 41, 7, 9, 80], [-1, -1, 0, 1, 3, 3, 2]
    paths: list[list[int]] = []
    for i, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), i])
    depths = [len(path) - 1 for path in paths]
    for start, stop in ((0, 2), (2, 4), (4, 7)):
        branches = Branches(len(text), depths[:stop], paths[:stop])
        rows.append(head.feed(models["draft"].ids(nodes[start:stop]), stop - start, branches=branches)[0])
    scored = torch.cat(rows)
    assert torch.allclose(scored[0], reference.chain(text, [])[-1], atol=2e-5)
    for i, path in enumerate(paths):
        assert torch.allclose(scored[1 + i], reference.chain(text, [nodes[j] for j in path])[-1], atol=2e-5)
    # All of it in one feed: nodes whose parent is in it go in forwards of their own.
    head.truncate(len(text))
    again = head.feed(models["draft"].ids(nodes), len(nodes), branches=Branches(len(text), depths, paths))[0]
    assert torch.allclose(again, scored[1:], atol=2e-5)


def test_a_text_that_the_target_is_not_at(tmp_path: Path) -> None:
    """`Engine.score` of the draft alone: the target's states are computed for it."""
    reference, models = pair(tmp_path, drafted=FEW)
    engine = Engine(models, reuse=True)
    for text, after in ((LONG, [9, 40]), ([*LONG, 9], [41, 42]), (LONG[:4], [7])):
        scored, _ = engine.score("draft", text, after)
        rows = [reference.chain([*text, *after[:i]], [])[-1] for i in range(len(after) + 1)]
        assert torch.allclose(scored, torch.stack(rows), atol=2e-5)
