"""SpecExec on real model folders: the baseline's very tokens for a seed, its counts, its limits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers.model_folders import build, nightly_for, slow_for
from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import TARGET, CertainRng, Rng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine, Generation
from specexp.errors import ConfigError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.toy import ToyModel
from specexp.metrics.trees import check_trees
from specexp.storage.records import Record

Pair = Callable[[str], dict[str, HFModel]]
SAME_TOKENS = ("llama", "qwen2", "gpt2", "gpt_neox")
WINDOWED = ("mistral_window", "gpt_oss")  # caches of full length, and a mask for each kind of layer
WARPS = {0.0: Warp(), 0.6: Warp(0.6, top_p=0.9), 1.0: Warp(1.0, top_p=0.9)}
# Budget, branches: a chain of one, a tree, and one larger than 4 branches fill.
BUDGETS = {1: 4, 16: 4, 128: 8}
NOISE = 1e-4  # of logits, within which a divergence is a near tie


def tree(budget: int, temperature: float = 0.0, **more: Any) -> SpecExec:
    return SpecExec(
        budget, **{"max_depth": 3, "warp": WARPS[temperature], "parallel_branches": BUDGETS[budget], **more}
    )


def prompts(count: int) -> list[list[int]]:
    numbers = random.Random(0)
    return [[numbers.randrange(3, 96) for _ in range(numbers.randrange(1, 24))] for _ in range(count)]


def a_near_tie(model: HFModel, ids: list[int], tokens: set[int], warp: Warp, rng: Rng, position: int) -> bool:
    """Whether logits that differ from a plain forward's by no more than NOISE draw each of `tokens` here."""
    logits, _ = model.session().feed(model.ids(ids), rows=1)
    noise = NOISE * (2 * torch.rand(256, logits.shape[1], generator=torch.Generator().manual_seed(0)) - 1)
    return tokens <= {int(rng.pick(row, position, TARGET)) for row in warp(logits + noise)}


def compare(models: dict[str, HFModel], count: int, length: int) -> tuple[int, int]:
    """Outputs compared, and those that part from the baseline's at a near tie; any other way fails."""
    engine: Any = Engine(models)
    compared = parted = 0
    for temperature, warp in WARPS.items():
        for number, prompt in enumerate(prompts(count)):
            rng = rng_for(temperature, 7, f"p{number}")
            expected = engine.generate(Baseline(warp), prompt, length, rng).token_ids
            for budget in BUDGETS:
                got = engine.generate(tree(budget, temperature), prompt, length, rng).token_ids
                compared += 1
                if got == expected:
                    continue
                at = next(i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b)
                tokens = {got[at], expected[at]}
                assert a_near_tie(models["target"], prompt + expected[:at], tokens, warp, rng, at), (prompt, at, budget)
                parted += 1
    return compared, parted


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("family", slow_for([*SAME_TOKENS, *WINDOWED], "gpt_oss", "gpt_neox", "gpt2"))
def test_the_same_seed_gives_the_baselines_tokens(pair: Pair, family: str) -> None:
    compared, parted = compare(pair(family), 10, 8)
    assert compared == 90
    assert parted <= 1


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("family", nightly_for(SAME_TOKENS, "gpt2", "gpt_neox"))
def test_the_same_seed_gives_the_baselines_tokens_on_100_prompts(
    pair: Pair, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    compared, parted = compare(pair(family), 100, 8)
    with capsys.disabled():
        print(f"\n  {family}: {compared} outputs, {parted} part from the baseline's, at measured near ties", end="")
    assert compared == 900
    assert parted <= 5


def test_a_divergence_that_is_no_near_tie_is_told_from_one(pair: Pair) -> None:
    model = pair("llama")["target"]
    logits, _ = model.session().feed(model.ids([5, 6]), rows=1)
    first, second = torch.topk(logits[0], 2).indices.tolist()
    assert a_near_tie(model, [5, 6], {first}, WARPS[0.0], CertainRng(), 0)
    assert not a_near_tie(model, [5, 6], {first, second}, WARPS[0.0], CertainRng(), 0)


def test_the_cache_changes_neither_output_nor_trees(pair: Pair) -> None:
    models: Any = pair("llama")
    for temperature in WARPS:
        rng = rng_for(temperature, 1, "p")
        cached, without = (
            Engine(models, cached=cached).generate(tree(16, temperature), [5, 9, 11], 24, rng)
            for cached in (True, False)
        )
        assert cached.token_ids == without.token_ids
        assert cached.trees == without.trees


def as_record(out: Generation) -> Record:
    return {name: getattr(out, name) for name in Generation.__dataclass_fields__}


@pytest.mark.parametrize("budget", BUDGETS)
def test_counts_of_a_tree(pair: Pair, budget: int) -> None:
    """One target forward a round; a draft forward a level at most; one look at each of them, one at the round."""
    models: Any = pair("llama")
    engine = Engine(models)
    decoder = tree(budget)
    out = engine.generate(decoder, [5, 6, 7], 40, CertainRng())
    assert len(out.token_ids) == 40
    assert out.num_cut == 0, "a path is trimmed to what is left, not cut"
    assert out.num_target_calls == out.num_rounds == len(out.trees) < 40
    assert out.num_target_positions == out.num_rounds + out.num_drafted
    assert engine.num_host_reads == out.num_draft_calls + out.num_rounds
    assert max(t["num_nodes"] for t in out.trees) == budget
    assert all(t["num_draft_calls"] <= decoder.max_depth for t in out.trees)
    assert all(t["max_active"] <= decoder.parallel_branches for t in out.trees)
    check_trees(as_record(out))
    if budget == 1:  # its children cannot enter: the root's forward is the only one
        assert out.num_draft_calls == sum(t["num_draft_calls"] for t in out.trees) <= out.num_rounds


def test_the_draft_scores_its_root_and_no_node_twice(pair: Pair) -> None:
    models: Any = pair("llama")
    out = Engine(models).generate(tree(16), [5, 6, 7], 40, CertainRng())
    # Behind a path that ended in a leaf, the draft has not read the leaf yet.
    unread = out.num_draft_positions - sum(int(t["num_expanded"]) for t in out.trees)
    assert 0 <= unread <= out.num_rounds


def test_pruning_and_budget_change_the_calls_and_never_the_output(pair: Pair) -> None:
    models: Any = pair("qwen2")
    shapes: list[dict[str, Any]] = [
        {}, {"branch_width": 1}, {"branch_width": 7}, {"branch_prune_threshold": 0.4}, {"branch_prune_threshold": 1.0},
        {"min_log_prob": -3.0}, {"max_depth": 1}, {"max_depth": 9},
    ]  # fmt: skip
    rounds = set()
    rng = rng_for(0.6, 3, "p")
    expected = Engine(models).generate(Baseline(WARPS[0.6]), [9, 8, 7], 40, rng).token_ids
    for shape in shapes:
        for budget in (16, 128) if not shape else (16,):
            out = Engine(models).generate(tree(budget, 0.6, **shape), [9, 8, 7], 40, rng)
            assert out.token_ids == expected
            check_trees(as_record(out))
            rounds.add(out.num_rounds)
    assert len(rounds) > 3


def test_an_eos_inside_a_path_ends_the_output_there(pair: Pair) -> None:
    models: Any = pair("llama")
    free = Engine(models).generate(Baseline(WARPS[0.0]), [5, 9], 40, CertainRng()).token_ids
    cut = 0
    for place in range(2, 30, 3):
        eos = [free[place]]
        out = Engine(models, eos).generate(tree(128), [5, 9], 40, CertainRng())
        assert out.token_ids == free[: free.index(eos[0]) + 1]
        assert out.finish_reason == "stop"
        check_trees(as_record(out))
        cut += out.num_cut
    assert cut, "no EOS ever fell inside a path: the test says little"


def test_a_limit_is_met_exactly(pair: Pair) -> None:
    models: Any = pair("llama")
    whole = Engine(models).generate(Baseline(WARPS[0.0]), [5, 9], 14, CertainRng()).token_ids
    for limit in range(1, 15):
        out = Engine(models).generate(tree(128), [5, 9], limit, CertainRng())
        assert out.token_ids == whole[:limit]
        assert out.num_cut == 0
        assert out.trees[-1]["depth"] <= limit - 1


def test_a_tree_ends_where_the_drafts_context_ends(pair: Pair) -> None:
    target = pair("gpt2")["target"]
    short = HFModel(build("gpt2", n_positions=20), "short")  # learned positions: one too many would crash
    for prompt in ([5] * 4, [5] * 25):  # the second prompt does not even fit the draft
        models: Any = {"target": target, "draft": short}
        expected = Engine(models).generate(Baseline(WARPS[0.0]), prompt, 40, CertainRng()).token_ids
        out = Engine(models).generate(tree(16), prompt, 40, CertainRng())
        assert out.token_ids == expected
        assert out.trees[-1] == {**out.trees[-1], "num_nodes": 0, "num_draft_calls": 0, "path": [], "ranks": []}
        assert (out.num_draft_calls > 0) == (len(prompt) < 20)


def test_the_targets_context_bounds_a_tree(pair: Pair) -> None:
    models: Any = pair("gpt2")
    out = Engine(models).generate(tree(16), [5] * 150, 40, CertainRng())
    assert len(out.token_ids) == 10
    assert out.finish_reason == "context"


def test_a_favourites_only_tree_is_a_chain_of_the_drafts_favourites() -> None:
    """Threshold 1 keeps the best child alone, as a width of one does."""
    model, other = ToyModel(9, 1), ToyModel(9, 1, draft_noise=0.3)
    outs = [
        Engine({"target": model, "draft": other}).generate(decoder, [1, 2], 30, CertainRng())
        for decoder in (
            SpecExec(8, 4, Warp(), branch_prune_threshold=1.0),
            SpecExec(8, 4, Warp(), branch_width=1),
            SpecExec(8, 4, Warp(), parallel_branches=1),
        )
    ]
    assert outs[0].token_ids == outs[1].token_ids == outs[2].token_ids
    assert [t["num_nodes"] for t in outs[0].trees] == [t["num_nodes"] for t in outs[1].trees]
    assert all(t["num_nodes"] == t["depth"] for t in outs[0].trees + outs[1].trees)
    assert all(set(t["ranks"]) <= {0} for t in outs[0].trees)  # type: ignore[arg-type]


def test_candidates_are_charged_in_order() -> None:
    """Threshold first, then log-probability, then budget; every candidate is kept or charged once."""
    models: Any = {"target": ToyModel(9, 1), "draft": ToyModel(9, 1, draft_noise=0.3)}

    def pruned(**more: Any) -> np.ndarray:
        out = Engine(models).generate(SpecExec(4, 1, Warp(), 6, **more), [1, 2], 2, CertainRng())
        names = ("num_candidates", "num_nodes", "pruned_by_threshold", "pruned_by_log_prob", "pruned_by_budget")
        return np.array([out.trees[0][name] for name in names])

    assert pruned().tolist() == [6, 4, 0, 0, 2]
    by_threshold, by_log_prob = pruned(branch_prune_threshold=0.2)[2], pruned(min_log_prob=-2.0)[3]
    assert by_threshold > 2
    assert by_log_prob > 2
    both = pruned(branch_prune_threshold=0.2, min_log_prob=-2.0)
    assert both[2] == by_threshold, "a candidate that fails both is charged to the threshold"
    assert both[0] == both[1:].sum() == 6


def test_wrong_shapes_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SpecExec(0, -1, Warp(), parallel_branches=0, branch_prune_threshold=1.5, min_log_prob=2.0)
    assert caught.value.faults == [
        "tree_budget is 0; it must be >= 1.",
        "max_depth is -1; it must be >= 1.",
        "parallel_branches is 0; it must be >= 1.",
        "branch_width is 0; it must be >= 1.",
        "branch_prune_threshold is 1.5; it must be in [0, 1] (0 = off).",
        "min_log_prob is 2.0; it must be <= 0.",
    ]
