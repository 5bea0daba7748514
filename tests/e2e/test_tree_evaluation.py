"""SpecExec in an evaluation: its settings, its metrics from sums, and what it gains on the embedded pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from helpers.cli_runner import evaluate, flat_runs, records
from helpers.model_folders import build
from specexp import config
from specexp.config import TreeConfig
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine
from specexp.errors import ConfigError, ModelError
from specexp.evaluation import preparation
from specexp.evaluation.report.figures import draw_trees
from specexp.metrics.summary import check_identities, summarise
from specexp.metrics.trees import TreeSums
from specexp.pair.loading import load_pair
from specexp.profiling.call_costs import Costs
from specexp.tasks.task import task


def methods(**settings: Any) -> list[config.MethodConfig]:
    return list(config.resolve("arith_quick", {"methods": "specexec", **settings}).methods)


def test_with_gamma_alone_it_is_the_depth_and_gives_the_budget() -> None:
    (preset,) = methods()
    assert preset.label == "specexec"
    assert preset.tree == TreeConfig(tree_budget=32, max_depth=8, parallel_branches=4)
    given = methods(gamma="2,5")
    assert [m.label for m in given] == ["specexec_k2", "specexec_k5"]
    assert [(m.tree.tree_budget, m.tree.max_depth) for m in given if m.tree] == [(8, 2), (20, 5)]
    (small,) = methods(methods="specexec_k4")
    assert small.tree == TreeConfig(16, 4)


def test_budgets_are_settings_of_one_run() -> None:
    resolved = methods(tree_budget="8, 64")
    assert [m.label for m in resolved] == ["specexec_b8", "specexec_b64"]
    assert [m.tree for m in resolved] == [TreeConfig(8, 8), TreeConfig(64, 8)]
    both = methods(tree_budget="8,64", gamma="2,3")
    assert [m.label for m in both] == ["specexec_k2_b8", "specexec_k2_b64", "specexec_k3_b8", "specexec_k3_b64"]
    sweep = config.resolve("arith_trees").methods
    assert [m.tree.tree_budget for m in sweep if m.tree] == [8, 16, 32, 64, 128, 256]


def test_a_file_sets_the_shape(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "parallel_branches: 3\nbranch_width: 5\nmax_depth: 6\nbranch_prune_threshold: 0.1\nmin_log_prob: -4\n"
    )
    (method,) = methods(config=str(file), gamma="2")
    assert method.tree == TreeConfig(18, 6, 3, 5, 0.1, -4.0), "max_depth goes before gamma"
    assert method.label == "specexec"


def test_a_trees_settings_go_with_a_tree() -> None:
    with pytest.raises(
        ConfigError, match="tree_budget is given, but no selected method uses it; leave it out, or add spec"
    ):
        methods(methods="speculative", tree_budget="8,64")
    chain, *trees = methods(methods="speculative,specexec", tree_budget="8,64")
    assert (chain.label, chain.gamma, chain.tree) == ("speculative", 8, None)
    assert [tree.tree.tree_budget for tree in trees if tree.tree] == [8, 64]


def test_wrong_shapes_are_all_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "parallel_branches: 0\nbranch_width: two\nmax_depth: -1\nbranch_prune_threshold: 2\nmin_log_prob: 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        methods(config=str(file), tree_budget="8,8")
    assert [fault.removeprefix(f"{file}: ") for fault in caught.value.faults] == [
        "parallel_branches is 0; it must be a whole number >= 1.",
        "branch_width is 'two'; it must be a whole number >= 1.",
        "max_depth is -1; it must be a whole number >= 1.",
        "branch_prune_threshold is 2; it must be a number in [0, 1] (0 = off).",
        "min_log_prob is 1; it must be a number <= 0.",
        "tree_budget is '8,8'; it must list each budget only once.",
    ]


def test_a_model_that_takes_no_trees_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from specexp.lm.hf import hf_model, loading

    def loaded(*_: Any, **__: Any) -> hf_model.HFModel:
        model = hf_model.HFModel(build("llama", vocab_size=592, max_position_embeddings=512), "tiny", 592)
        model.module.config._attn_implementation_internal = "flash_attention_2"
        return model

    monkeypatch.setattr(loading, "load_model", loaded)
    with pytest.raises(ModelError, match="model 'tiny' uses flash_attention_2 attention, which takes no tree mask"):
        preparation.prepare(config.resolve("arith_quick", {"methods": "baseline,specexec"}))
    assert preparation.prepare(config.resolve("arith_quick", {"methods": "baseline,speculative"}))
    with pytest.raises(ConfigError, match="max_depth is 300; with a context of 512 it must be at most 256"):
        preparation.prepare(config.resolve("arith_quick", {"methods": "specexec", "gamma": "300"}))


def tree(path: list[int], ranks: list[int], **more: Any) -> dict[str, Any]:
    """Eight nodes of twenty candidates, on three levels."""
    shape = {
        "num_accepted": len(path), "num_nodes": 8, "depth": 3, "num_draft_calls": 3, "num_expanded": 5, "max_active": 2,
        "num_candidates": 20, "pruned_by_threshold": 6, "pruned_by_log_prob": 4, "pruned_by_budget": 2, "path": path,
        "ranks": ranks,
    }  # fmt: skip
    return {**shape, **more}


def record(**more: Any) -> dict[str, Any]:
    """Nine tokens in four rounds: 3, 0, 1 and 2 accepted, one token cut."""
    base = {
        "prompt_id": "a", "turn": 0, "method": "specexec", "label": "specexec", "repeat": 0, "category": "",
        "paired": True, "token_ids": list(range(9)), "num_rounds": 4, "num_drafted": 32, "num_accepted": 6,
        "num_judged": 0, "num_cut": 1, "num_full": 0, "num_tested": 0, "overlap": 0.0, "num_target_calls": 4,
        "num_target_positions": 36, "num_draft_calls": 12, "num_draft_positions": 44,
        "accepted_histogram": [1, 1, 1, 1], "seconds": 1.0,
        "prefill_seconds": 0.5, "time_to_first_token": 0.6, "correct": True,
        "trees": [tree([0, 3, 7], [0, 1, 0]), tree([], []), tree([2], [2]), tree([0, 4], [0, 0], max_active=4)],
    }  # fmt: skip
    return {**base, **more}


def test_a_trees_metrics() -> None:
    got = summarise([record(), record(prompt_id="b")], [], None, gamma=0)
    expected = {
        "accept/mean_length": 9 / 4,
        "calls/target_per_token": 4 / 9,
        "calls/draft_per_token": 12 / 9,
        "tree/effective_parallelism": 9.0,
        "tree/max_active_branches": 4,
        "tree/branch_prune_rate": 1 - 32 / 80,
        "tree/pruned_by_threshold": 24 / 80,
        "tree/pruned_by_log_prob": 16 / 80,
        "tree/pruned_by_budget": 8 / 80,
        "tree/depth_1": 3 / 4,
        "tree/depth_2": 2 / 4,
        "tree/depth_3": 1 / 4,
        "tree/cache_hit_rate": 6 / 10,
    }
    assert {key: got[key] for key in expected} == pytest.approx(expected)
    assert not {key for key in got if key.startswith("tree/")} - expected.keys()
    assert not {"accept/alpha", "accept/draft_rate", "speed/attainable"} & got.keys(), "those are a chain's"
    parts = sum(got[f"tree/pruned_by_{part}"] for part in ("threshold", "log_prob", "budget"))
    assert parts == pytest.approx(got["tree/branch_prune_rate"])
    assert sum(got[f"tree/depth_{i}"] for i in (1, 2, 3)) == pytest.approx(6 / 4), "the accepted tokens of a round"
    assert 1 / (1 - got["tree/cache_hit_rate"]) == pytest.approx((6 + 4) / 4), "tokens a step, before cutting"
    assert sum(TreeSums.of([record()]).by_rank()) == pytest.approx(got["tree/cache_hit_rate"])
    assert TreeSums.of([record()]).by_rank() == pytest.approx([0.4, 0.1, 0.1])
    assert TreeSums.of([record()]).reached() == [3 / 4, 2 / 4, 1 / 4]


def test_a_trees_calls_are_priced_at_their_mean_sizes() -> None:
    """Twelve draft calls on 24 nodes in four rounds, and nine positions verified in each."""
    plain = record(method="baseline", label="baseline", trees=[], num_rounds=9, seconds=2.0)
    costs = Costs(0.01, {1: 0.1}, {3: 0.03}, {9: 0.14})
    got = summarise([record(num_draft_positions=24)], [plain], costs, gamma=0)
    assert got["speed/c"] == pytest.approx(0.2)
    assert got["speed/v"] == pytest.approx(1.4)
    assert got["speed/attainable"] == pytest.approx((9 / 4) / (3 * 0.2 + 1.4))
    assert got["speed/realised"] == pytest.approx(2 / got["speed/attainable"])
    assert "speed/predicted_speedup" not in got


LIMITS = TreeConfig(tree_budget=8, max_depth=3, parallel_branches=4)


def test_identities_hold_for_good_records() -> None:
    check_identities(record(), LIMITS)


@pytest.mark.parametrize(
    "broken",
    [{"pruned_by_budget": 3}, {"path": [3, 0, 7]}, {"path": [0, 3]}, {"ranks": [0, 1]}, {"depth": 2}, {"depth": 4},
     {"num_nodes": 9, "pruned_by_budget": 1}, {"max_active": 5}, {"num_draft_calls": 4}, {"max_active": 1},
     {"path": [0, 3, 8]}, {"ranks": [0, 1, 4]}, {"num_expanded": 4}],
)  # fmt: skip
def test_a_broken_tree_is_noticed(broken: dict[str, Any]) -> None:
    trees = record()["trees"]
    with pytest.raises(AssertionError):
        check_identities(record(trees=[{**trees[0], **broken}, *trees[1:]]), LIMITS)


@pytest.mark.parametrize(
    "broken", [{"num_target_positions": 35}, {"num_draft_calls": 11}, {"num_target_calls": 5}, {"num_cut": 0}]
)
def test_rounds_that_do_not_add_up_are_noticed(broken: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_identities(record(**broken), LIMITS)


def test_the_figure_is_drawn_even_when_nothing_was_accepted(tmp_path: Path) -> None:
    nothing = record(trees=[tree([], [], depth=0)])
    for name, drawn in (("some", record()), ("none", nothing)):
        draw_trees(tmp_path / f"{name}.png", name, [drawn])
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_budget_sweep_leaves_a_run_with_a_figure_for_each(workplace: Path) -> None:
    settings = ["--experiment", "arith_trees", "--tree_budget", "4,12", "--limit", "1", "--max_new_tokens", "16"]
    result = evaluate(*settings, "--output", "out")
    assert result.exit_code == 0, result.output
    by = {r["label"]: r for r in records(workplace / "out")}
    assert by.keys() == {"baseline", "speculative_k8", "specexec_k8_b4", "specexec_k8_b12"}
    assert len({tuple(r["token_ids"]) for r in by.values()}) == 1
    runs = flat_runs()
    for budget in (4, 12):
        name = f"specexec_k8_b{budget}"
        assert len(by[name]["trees"]) == by[name]["num_rounds"]
        run = runs[name]
        assert run.data.params["tree_budget"] == str(budget)
        assert run.data.params["parallel_branches"] == "16"
        assert run.data.metrics["tree/max_active_branches"] <= 16
        assert f"trees-{name}.png" in {f.path for f in MlflowClient().list_artifacts(run.info.run_id)}
        assert (workplace / "out" / f"trees-{name}.png").exists()
    assert runs["baseline"].data.metrics["tree/effective_parallelism"] == 1
    assert runs["speculative_k8"].data.metrics["tree/effective_parallelism"] <= 9
    measured = json.loads((workplace / "out" / "costs.json").read_text())
    assert measured["target"].keys() == {"1", "9"}
    assert measured["tree_draft"].keys() == {"16"}
    assert {"5", "13"} <= measured["tree_target"].keys(), "a call on each budget and its root"
    for budget in (4, 12):
        metrics = runs[f"specexec_k8_b{budget}"].data.metrics
        (record,) = (r for r in by.values() if r["label"] == f"specexec_k8_b{budget}")
        calls = record["num_draft_calls"] / record["num_rounds"]
        expected = metrics["accept/mean_length"] / (calls * metrics["speed/c"] + metrics["speed/v"])
        assert metrics["speed/attainable"] == pytest.approx(expected)


def test_the_preset_for_offloaded_targets_keeps_its_depth_whatever_the_chains_length() -> None:
    resolved = methods(methods="speculative,specexec_offload", gamma="8,16")
    assert [method.gamma for method in resolved if not method.tree] == [8, 16]
    trees = [method.tree for method in resolved if method.tree]
    assert [tree.tree_budget for tree in trees] == [256, 512, 1024, 2048]
    assert {(tree.max_depth, tree.parallel_branches, tree.branch_width) for tree in trees} == {(24, 16, 8)}
    experiment = config.resolve("arith_offload")
    assert (experiment.target.offload, experiment.draft.offload) == ("disk", "none")
    assert [method.tree for method in experiment.methods if method.tree] == trees


@pytest.mark.slow
def test_on_the_embedded_pair_tokens_per_call_grow_with_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """At depth = gamma = 8; the cap is a tree of that depth whose every path is accepted to its end."""
    experiment = config.resolve("arith_quick")
    pair = load_pair(experiment, {"target", "draft"})
    examples = task("arith").examples(4)
    engine = Engine(pair.models, pair.eos_ids)

    def decode(decoder: Decoder, temperature: float) -> tuple[float, list[list[int]]]:
        outs = [
            engine.generate(
                decoder, pair.text.encode(x.messages()), 160, rng_for(temperature, experiment.seed, x.prompt_id)
            )
            for x in examples
        ]
        return sum(len(o.token_ids) for o in outs) / sum(o.num_rounds for o in outs), [o.token_ids for o in outs]

    for temperature in (0.0, 0.7, 1.0):
        warp = Warp(temperature)
        _, plain = decode(Baseline(warp), temperature)
        chain, _ = decode(Chain(DraftModel(8), Lossless(), warp), temperature)
        lengths = []
        for budget in (8, 32, 128):
            length, tokens = decode(SpecExec(budget, 8, warp, parallel_branches=16), temperature)
            assert tokens == plain
            lengths.append(length)
        default, _ = decode(SpecExec(32, 8, warp), temperature)
        with capsys.disabled():
            shown = ", ".join(f"{x:.2f}" for x in lengths)
            print(
                f"\n  T={temperature}: tokens a call: chain {chain:.2f}; trees of 8, 32, 128 nodes {shown};"
                f" 32 nodes, 4 branches {default:.2f} = {default / chain:.2f}x, cap {9 / chain:.2f}x",
                end="",
            )
        assert lengths[0] < lengths[1] < lengths[2] <= 9
        if temperature == 0:
            assert default >= 1.10 * chain
