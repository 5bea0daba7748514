"""The benchmark's batch: what is timed, that both sizes emit the same, and how it is told when they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from helpers.benchmarks import SMALL, run
from helpers.cli_runner import refused, runs
from specexp import config
from specexp.benchmark import benchmark, throughput
from specexp.benchmark.benchmark_report import table
from specexp.engine import Engine, engine
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import SpecexpContender


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    flags = {"methods": "baseline,speculative", "gamma": "3", "limit": "2", "max_new_tokens": "24", "batch": "4"}
    return benchmark.prepare(config.resolve("arith_quick", flags, {"repeats": 4}))


def measured(prepared: Prepared) -> throughput.Batched:
    own = [
        SpecexpContender(name, prepared, setting)
        for name, setting in zip(("plain", "chain_k3"), prepared.settings, strict=False)
    ]
    with tqdm(disable=True) as bar:
        made = throughput.Batching(prepared, own, 4, bar)
        for _ in range(throughput.num_turns(prepared)):
            made.turn()
        return made.result()


@pytest.mark.slow
def test_both_methods_are_timed_at_both_sizes_on_several_batches_of_prompts(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[int, list[int]] = {1: [], 4: []}
    real = Engine.generate_all

    def watched(self: Any, requests: Any) -> Any:
        given = list(requests)
        sizes[self._max_batch_size].append(len(given))
        return real(self, given)

    monkeypatch.setattr(Engine, "generate_all", watched)
    batched = measured(prepared)
    assert (batched.size, batched.num_prompts) == (4, 12), "more prompts than the two that are prepared"
    assert sizes == {1: [4] * 2 + [12] * 4, 4: [4] * 2 + [12] * 4}, "warm-ups, then two repeats of two methods"
    assert set(batched.seconds) == {(name, size) for name in ("plain", "chain_k3") for size in (1, 4)}
    assert batched.differences == []
    for method in batched.as_json()["methods"].values():
        ratio = method["prompts_per_second"]["value"] / method["prompts_per_second_alone"]["value"]
        assert method["speedup"]["value"] == pytest.approx(ratio)


def test_prompts_per_second_are_prompts_over_seconds_and_their_ratio_the_speed_up() -> None:
    report = throughput.Batched(8, 24, {("plain", 1): [6.0, 6.0], ("plain", 8): [2.0, 2.0]}, []).as_json()
    assert report["methods"]["plain"]["prompts_per_second"]["value"] == 12
    assert report["methods"]["plain"]["prompts_per_second_alone"]["value"] == 4
    assert report["methods"]["plain"]["speedup"]["value"] == 3


@pytest.mark.slow
def test_a_batch_that_emits_something_else_is_found_out(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.score

    def shifted(model: Any, asked: Any, transfer: Any) -> Any:
        answers = real(model, asked, transfer)
        return answers if len(asked) == 1 else [type(a)(a.logits.roll(1, -1)) for a in answers]

    monkeypatch.setattr(engine, "score", shifted)
    differences = measured(prepared).differences
    assert {one.name for one in differences} <= {"plain_batch4", "chain_k3_batch4"}
    assert any(one.gap is not None and not one.near_tie for one in differences)


@pytest.mark.slow
def test_it_is_part_of_a_benchmark(workplace: Path) -> None:
    result = run(*SMALL, "--batch", "3", "--json", "report.json", "--output", "out")
    assert result.exit_code == 0, result.output
    report = json.loads((workplace / "report.json").read_text())
    assert (report["batch"]["size"], report["batch"]["prompts"]) == (3, 9)
    chain = f"chain_k{report['best_gamma']}"
    assert set(report["batch"]["methods"]) == {"plain", chain}
    assert report["batch_speedup"] == report["batch"]["methods"]["plain"]["speedup"]["value"] > 0
    assert report["batch_speedup_chain"] == report["batch"]["methods"][chain]["speedup"]["value"]
    assert report["outputs_equal"] is True
    assert "3 together" in result.output
    [made] = runs()
    assert made.data.metrics["bench/batch_speedup"] == pytest.approx(report["batch_speedup"])
    assert "batch/prompts_per_second_plain" in made.data.metrics


@pytest.mark.nightly
def test_a_batch_of_one_is_not_timed(workplace: Path) -> None:
    result = run(*SMALL, "--batch", "1", "--json", "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((workplace / "report.json").read_text())
    assert report["batch"] is None
    assert "batch_speedup" not in report
    assert "together" not in table(report)


def test_a_batch_that_is_no_whole_number_is_refused(workplace: Path) -> None:
    refused(run("--quick", "--batch", "0"), "batch is '0'; it must be a whole number >= 1.", workplace)
