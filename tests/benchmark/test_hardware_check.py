"""`speed_check` measures a pair of random models from beginning to end; on a GPU, the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from entrypoints.speed_check import command
from helpers.cli_runner import invoke
from helpers.fake_clock import Clock, ClockedToy
from specexp.benchmark import hardware_check
from specexp.benchmark.hardware_check import _forwards
from specexp.benchmark.hardware_table import TREES, quantities
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rules import Warp
from specexp.profiling.call_costs import Costs

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> Result:
    return invoke(command, *arguments)


@pytest.mark.slow
def test_a_tiny_pair_is_measured_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    done = run("--shape", "tiny", "--device", "cpu", "--gamma", "2", "--no-compiled", "--json", str(path))
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    seconds = result["seconds"]
    assert seconds["plain_forward_not_captured"] is None
    assert all(value > 0 for value in seconds.values() if value is not None)
    assert set(result["v"]) == {"1", "2", "3", "5", "8"}
    assert set(result["v_tree"]) == {"17", "65", "129", "257"}
    assert result["share_of_copy"] == pytest.approx(seconds["floor"] / seconds["plain_step"])
    table = {each["name"]: each for each in result["table"]}
    empty = {name for name, each in table.items() if each["measured"] is None}
    assert empty == {"generate() compiled, a token"}
    assert table["generate() compiled, a token"]["reason"] == "it was not asked for (compiled=false)"
    rows = [each["measured"] for each in result["table"]]
    assert rows[1] == pytest.approx(result["share_of_copy"])
    assert table["v(5): 5 positions / a plain step"]["measured"] == pytest.approx(result["v"]["5"])
    assert table["v(5): 5 positions / a plain step"]["wanted"] == {"at_most": 1.05}
    for line in result["lines"]:
        assert line in done.output


def test_without_a_gpu_the_cells_of_a_large_shape_are_empty_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "speed.json"
    done = run("--shape", "qwen3-8b-0.6b", "--json", str(path))
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert {each["measured"] for each in result["table"]} == {None}
    assert {each["reason"] for each in result["table"]} == {"no CUDA device here; device=cpu measures it on the CPU"}
    assert {"seconds", "v", "v_tree", "share_of_copy", "round_over_parts", "wanted", "models", "check"} < set(result)
    assert "None" not in done.output


def test_a_line_has_the_value_and_what_is_wanted_or_the_reason() -> None:
    numbers = {
        "plain_step": 0.006,
        "target_bound": 0.0054,
        "round": 0.03,
        "round_together": 0.045,
        "plain_forward": 0.006,
    }
    lines = {each.name: each for each in quantities(numbers, {"target_5": "memory does not suffice: x"}, 4)}
    assert lines["plain step of the target"].line().split() == ["plain", "step", "of", "the", "target", "6.000", "ms"]
    assert lines["  share of a copy's bandwidth"].measured is None, "the draft's, which has the same name"
    shares = [each for each in quantities(numbers, {}, 4) if each.at_least is not None]
    assert [each.measured for each in shares] == [pytest.approx(0.9), None]
    assert shares[0].line().split()[-3:] == ["0.900", ">=", "0.85"]
    five = lines["v(5): 5 positions / a plain step"]
    assert (five.measured, five.reason) == (None, "memory does not suffice: x")
    assert five.line().endswith("<= 1.05  memory does not suffice: x")
    assert lines["  / one prompt's round"].measured == pytest.approx(1.5)
    assert lines["  / its parts"].reason == "one of its parts was not measured"


def test_a_trees_forwards_are_the_drafts_levels_and_the_targets_call() -> None:
    costs = Costs(0.5, {1: 1.0}, {16: 2.0}, {129: 8.0, 257: 9.0})
    assert _forwards(costs, TREES[0]) == pytest.approx(0.5 + 7 * 2 + 8)
    assert _forwards(costs, TREES[1]) == pytest.approx(0.5 + 15 * 2 + 9)


def test_only_rounds_with_room_for_a_whole_draft_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a target call moves by a second a node, with a toy pair that accepts what it accepts."""
    clock = Clock()
    models: Any = {
        "target": ClockedToy(clock, 0.0, 1.0, vocab_size=24), "draft": ClockedToy(clock, 0.0, 0.0, vocab_size=24),
    }  # fmt: skip
    monkeypatch.setattr(hardware_check.time, "perf_counter", clock)
    for reach in (0, 4):
        decoder: Any = Chain(DraftModel(reach), Lossless(), Warp()) if reach else Baseline(Warp())
        seconds = hardware_check._round(models, decoder, list(range(3, 20)), hardware_check.HardwareCheck(), reach)
        assert seconds == pytest.approx(reach + 1), "every timed round verifies the whole chain"
        together = hardware_check._round(models, decoder, list(range(3, 20)), hardware_check.HardwareCheck(), reach, 3)
        assert together == pytest.approx(3 * (reach + 1)), "three prompts, one round each"


def test_wrong_settings_are_reported_together() -> None:
    done = run("--shape", "huge", "--dtype", "int3", "--gamma", "0")
    assert done.exit_code == 2
    assert "shape is 'huge'; known: llama-8b-1b, qwen3-8b-0.6b, llama-70b-8b, tiny." in done.output
    assert "dtype is 'int3'" in done.output
    assert "gamma is '0'; it must be a whole number >= 1." in done.output


@pytest.mark.slow
def test_it_does_not_import_mlflow() -> None:
    code = "import sys; from specexp.benchmark import hardware_check; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_an_8b_shape_is_measured_on_a_gpu(tmp_path: Path) -> None:
    """Measured and whole; whether the numbers are good is for a person to read: no test asserts a time."""
    path = tmp_path / "speed.json"
    assert run("--json", str(path)).exit_code == 0
    result = json.loads(path.read_text())
    assert result["models"]["target"]["graphs"] == "captured"
    assert isinstance(result["seconds"]["generate_compiled"], float)
