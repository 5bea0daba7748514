"""The speed benchmark: what it writes, that it tells unequal outputs, and that it measures what it says it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from entrypoints.benchmark import FIXED
from helpers.benchmarks import SMALL, run
from helpers.cli_runner import refused, runs
from specexp import config
from specexp.benchmark import benchmark, peers
from specexp.benchmark.contenders import HFContender
from specexp.benchmark.peers import Peer
from specexp.decoding import chain, rules
from specexp.engine import Engine
from specexp.errors import ConfigError
from specexp.evaluation.equality import differences
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import Timing, rotated
from specexp.lm.hf.hf_model import HFModel

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "plain_vs_generate", "chain_vs_assisted", "chain_vs_plain", "realised", "overhead_share", "share_of_floor",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    flags = {"methods": "baseline,speculative", "gamma": "3,5", "limit": "2", "max_new_tokens": "24"}
    return benchmark.prepare(config.resolve("arith_quick", flags))


def test_settings_that_it_fixes_are_refused_by_name(workplace: Path) -> None:
    """All at once; what is given as it is anyway is not refused."""
    given = {
        "methods": "[speculative, lookup]", "temperature": "0.7", "top_k": "5", "top_p": "0.9", "rule": "block",
        "draft_temperature": "0", "min_draft_probability": "0.3", "bonus": "false",
    }  # fmt: skip
    assert given.keys() == FIXED.keys()
    (workplace / "own.yaml").write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
    result = run(*SMALL, "--config", "own.yaml", "--output", "out")
    assert result.exit_code == 2
    for name, value in FIXED.items():
        assert f"{name} is given, but this command has it at {str(value).lower()}; leave it out." in result.output
    (workplace / "own.yaml").write_text("methods: [baseline, speculative]\ntemperature: 0\nrule: token\nbonus: true\n")
    kept = config.resolve("arith_quick", {"config": "own.yaml"}, None, FIXED)
    assert kept == config.resolve("arith_quick", {}, None, FIXED)
    (workplace / "own.yaml").write_text("suffix_factor: 2\n")
    with pytest.raises(ConfigError, match="suffix_factor is given, but no selected method uses it"):
        config.resolve("arith_quick", {"config": "own.yaml"}, None, FIXED)


@pytest.mark.slow
def test_it_leaves_numbers_a_figure_and_one_run(workplace: Path) -> None:
    result = run(*SMALL, "--json", "report.json", "--output", "out")
    assert result.exit_code == 0, result.output
    report = json.loads((workplace / "report.json").read_text())
    assert report == json.loads((workplace / "out/benchmark.json").read_text())
    assert all(isinstance(report[name], float) and report[name] > 0 for name in PROMISED)
    assert report["outputs_equal"] is True
    assert report["differences"] == []
    assert report["best_gamma"] in (3, 5)
    assert set(report["gammas"]) == {"3", "5"}
    best = report["best_gamma"]
    timed = {"plain", f"chain_k{best}", f"assisted_k{best}", "generate", "prompt_lookup", "specexec"}
    sampled = {f"{name}_t0.7" for name in ("plain", f"chain_k{best}", f"assisted_k{best}", "generate")}
    assert timed | sampled <= set(report["methods"])
    assert report["skipped"] == {"generate_compiled": "not asked for"}
    for parts in report["shares"].values():
        assert sum(parts.values()) == pytest.approx(1)
    for ratio in report["ratios"].values():
        assert ratio["low"] <= ratio["high"]
    assert report["environment"]["models"]["target"]["threads"] == torch.get_num_threads()
    assert (workplace / "out/benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert not list(workplace.glob("**/*.partial"))
    for name in (*PROMISED, "outputs_equal", "tok/s", "attainable"):
        assert name in result.output

    [made] = runs()
    assert made.info.status == "FINISHED"
    assert made.data.tags["method"] == "benchmark"
    assert made.data.metrics["bench/chain_vs_plain"] == pytest.approx(report["chain_vs_plain"])
    assert {"bench/outputs_equal", "speed/attainable", "accept/alpha", "share/host"} <= set(made.data.metrics)


@pytest.mark.slow
def test_a_decoder_with_a_bug_is_found_out(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = rules.verify_greedy

    def accepts_all(logits: Any, drafted: Any, accepted_anyway: Any, num_drafted: Any) -> Any:
        return right(logits, drafted, torch.ones_like(drafted, dtype=torch.bool), num_drafted)

    monkeypatch.setattr(chain, "verify_greedy", accepts_all)
    result = run(*SMALL, "--json", "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((workplace / "report.json").read_text())
    assert report["outputs_equal"] is False
    assert {d["name"].partition("_batch")[0] for d in report["differences"]} <= {"chain_k3", "chain_k5", "lookup"}
    far = [d for d in report["differences"] if d["gap"] is not None and not d["near_tie"]]
    assert far, "no divergence was told from a near tie"
    assert "outputs differ from generate()'s" in result.output


@pytest.mark.nightly
def test_without_mlflow_it_prints_and_writes_and_makes_no_run(workplace: Path) -> None:
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class WithoutMlflow(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name.split('.')[0] == 'mlflow' else PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutMlflow\n"
        f"sys.argv = ['benchmark', *{[*SMALL, '--json', 'report.json']!r}]\n"
        "from entrypoints.benchmark import command\n"
        "command()"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert out.returncode == 0, out.stderr
    assert "mlflow is not installed: no run was made." in out.stdout
    assert set(json.loads((workplace / "report.json").read_text())) >= PROMISED
    assert not runs()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma", "0"], "gamma is '0'; it must be a whole number >= 1"),
        (["--gamma", "400"], "gamma is 400; with a context of 512 it must be at most 256."),
        (["--repeats", "none"], "repeats is 'none'; it must be a whole number >= 1."),
        (["--compiled", "maybe"], "compiled is 'maybe'; it must be true or false, or be left out."),
        (["--experiment", "toy_quick"], "pair 'toy' has no Transformers models; name a pair that has."),
        (["--json", "nowhere/report.json"], "json 'nowhere/report.json' cannot be written; name a file in a folder"),
        (["--target", "./nowhere"], "model folder './nowhere' does not exist"),
    ],
    ids=lambda x: x[1] if isinstance(x, list) else "",
)
def test_bad_settings_are_refused(workplace: Path, arguments: list[str], message: str) -> None:
    refused(run("--quick", *arguments), message, workplace)


def test_a_target_in_several_processes_is_refused(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text("target: {device: cpu, tensor_parallel: 2}\n")
    message = "tensor_parallel is 2, but generate(), which a benchmark compares with, would run in one of the processes"
    refused(run("--quick", "--config", str(tmp_path / "shared.yaml")), message, workplace)


def test_a_folder_that_is_taken_is_left_alone(workplace: Path) -> None:
    (workplace / "out").mkdir()
    (workplace / "out/mine.txt").write_text("mine")
    result = run("--quick", "--output", "out")
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "error: output folder 'out' exists; give resume=true to go on there, or another output."
    ]
    assert [path.name for path in (workplace / "out").iterdir()] == ["mine.txt"]


def forwards(model: HFModel, contender: HFContender) -> tuple[int, Timing]:
    """Calls of a model while a contender decodes the first prompt."""
    seen: list[None] = []
    handle = model.module.register_forward_pre_hook(lambda *_: seen.append(None))
    try:
        timing = contender.time(0, 0)
    finally:
        handle.remove()
    return len(seen), timing


@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_assisted_generation_drafts_gamma_tokens_every_round(prepared: Prepared, gamma: int) -> None:
    models: Any = prepared.pair.models
    before = models["draft"].module.generation_config
    assisted = HFContender("assisted", prepared, Peer(models, (), gamma))  # no EOS, at which a draft would end early
    drafted, timing = forwards(models["draft"], assisted)
    rounds, _ = forwards(models["target"], assisted)
    assert len(timing.token_ids) == prepared.experiment.max_new_tokens
    assert models["draft"].module.generation_config is before
    # Only rounds near the limit may draft less.
    emitted_at_most = rounds * (gamma + 1)
    assert gamma * (rounds - 2) <= drafted <= gamma * rounds
    assert emitted_at_most >= len(timing.token_ids)


def test_a_models_own_generation_settings_do_not_leak_into_peers(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: Any = prepared.pair.models
    plain = HFContender("generate", prepared, Peer(models, prepared.pair.eos_ids))
    expected = plain.time(0, 0).token_ids
    own = models["target"].module.generation_config
    monkeypatch.setattr(own, "repetition_penalty", 3.0)
    monkeypatch.setattr(own, "do_sample", True)
    monkeypatch.setattr(own, "num_beams", 2)
    assert plain.time(0, 0).token_ids == expected


def test_padded_ids_are_suppressed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = prepared.pair.models
    assert Peer(models, ()).settings(4).suppress_tokens is None
    monkeypatch.setattr(models["target"], "vocab_size", 590)
    assert Peer(models, ()).settings(4).suppress_tokens == [590, 591]


def test_sampling_peers_draw_the_same_in_every_repeat(prepared: Prepared) -> None:
    sampling = HFContender("generate", prepared, Peer(prepared.pair.models, prepared.pair.eos_ids, temperature=1.0))  # type: ignore[arg-type]
    state = torch.get_rng_state()
    assert sampling.time(0, 0).token_ids == sampling.time(0, 1).token_ids
    assert torch.equal(torch.get_rng_state(), state)


def test_a_divergence_is_found_at_its_place_and_a_near_tie_told_from_another(prepared: Prepared) -> None:
    models: Any = prepared.pair.models
    ids = prepared.prompts[0]
    expected = HFContender("generate", prepared, Peer(models, prepared.pair.eos_ids)).time(0, 0).token_ids
    logits = Engine(models).score("target", [*ids, *expected[:5]], [])[0][-1]
    second = int(logits.topk(2).indices[1])
    outputs = {
        "generate": [expected],
        "same": [list(expected)],
        "other": [[*expected[:5], second, *expected[6:]]],
        "shorter": [expected[:7]],
    }
    other, shorter = differences(prepared.pair, torch.float32, {"a": ids}, outputs, "generate")
    assert (other.name, other.prompt_id, other.position, other.token, other.reference) == (
        "other",
        "a",
        5,
        second,
        expected[5],
    )
    assert other.gap == pytest.approx(float(logits[expected[5]] - logits[second]))
    assert not other.near_tie
    assert (shorter.position, shorter.token, shorter.gap, shorter.near_tie) == (7, None, None, False)
    coarse = torch.float8_e5m2  # so coarse that most gaps are within it
    [result] = differences(
        prepared.pair, coarse, {"a": ids}, {"generate": [expected], "other": outputs["other"]}, "generate"
    )
    assert result.near_tie == (other.gap <= torch.finfo(coarse).eps * float(logits.abs().max()))


def test_the_order_turns_with_prompts_and_repeats() -> None:
    orders = {(repeat, index): "".join(rotated("abc", repeat, index)) for repeat in range(3) for index in range(3)}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders.values())
    assert {orders[0, index] for index in range(3)} == {orders[repeat, 0] for repeat in range(3)}
    assert {orders[0, index] for index in range(3)} == {"abc", "bca", "cab"}


def test_everyone_is_timed_on_every_prompt_in_every_repeat_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name, self.gamma, self.temperature = name, 0, 0.0

        def time(self, index: int, repeat: int) -> Timing:
            calls.append((repeat, index, self.name))
            return Timing([1], 1.0)

    class Bar:
        def update(self) -> None: ...
        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

    calls: list[tuple[int, int, str]] = []
    before: list[int] = []
    timings = benchmark.timings([Named("a"), Named("b")], 3, 2, Bar(), lambda: before.append(len(calls)))
    assert before == [0, 2, 4, 6, 8, 10], "ahead of each prompt"
    assert [call[:2] for call in calls] == [(r, i) for r in range(2) for i in range(3) for _ in "ab"]
    assert [call[2] for call in calls[:6]] == ["a", "b", "b", "a", "a", "b"]
    assert {name: [len(row) for row in rows] for name, rows in timings.items()} == {"a": [2, 2, 2], "b": [2, 2, 2]}


@pytest.mark.nightly
def test_what_cannot_be_compiled_is_left_out_with_the_reason(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, Any]:
        return {"cache_implementation": "no_such_cache"}

    monkeypatch.setattr(peers, "compiled", broken)
    result = run(*SMALL, "--compiled", "true", "--json", "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((workplace / "report.json").read_text())
    assert "generate_compiled" not in report["methods"]
    assert "no_such_cache" in report["skipped"]["generate_compiled"]
    assert "generate_compiled" in result.output


def test_what_is_done_between_timings_is_spread_over_them() -> None:
    done: dict[str, list[int]] = {"costs": [], "batch": []}
    now = [0]
    spread = benchmark._Spread(20, {lambda: done["costs"].append(now[0]): 5, lambda: done["batch"].append(now[0]): 2})
    for now[0] in range(20):
        spread()
    assert done == {"costs": [0, 4, 8, 12, 16], "batch": [0, 10]}
