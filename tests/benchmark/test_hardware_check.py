"""`speed_check` measures a pair of random models from beginning to end; on a GPU, the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result

from entrypoints.speed_check import command
from helpers.cli_runner import invoke
from helpers.fake_clock import Clock, ClockedToy
from specexp.benchmark import hardware_check
from specexp.benchmark.hardware_check import _forwards
from specexp.benchmark.hardware_table import NOT_FOR_RATIO, ROWS, TREES, quantities
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rules import Warp
from specexp.errors import ModelError
from specexp.profiling.bandwidth import BandwidthBound
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


def measured(monkeypatch: pytest.MonkeyPatch, **failing: Exception) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """`measure` where every part of it gives a chosen number of seconds; `failing` has errors of rounds by the class of
    their decoder, and "invariant" that of a model with invariant numerics. And what rounds were asked for: decoder,
    tokens that it may draft, prompts together."""
    costs = Costs(0.5, {1: 2.0, 3: 2.5, 4: 2.75, 5: 3.0, 8: 4.0}, {4: 1.0, 8: 1.0, 16: 1.25}, {129: 8.0, 257: 10.0})
    models: Any = {
        role: SimpleNamespace(facts=lambda: {"device_name": "d", "dtype": "bfloat16", "graphs": "off"})
        for role in ("target", "draft")
    }
    rounds: list[tuple[Any, ...]] = []

    def whole_round(
        models: Any, decoder: Any, ids: Any, check: Any, reach: int, rows: int = 1, failing: Any = failing
    ) -> float:
        rounds.append((type(decoder).__name__, reach, rows))
        if error := failing.get(type(decoder).__name__):
            raise error
        return {"Baseline": 3.0, "Chain": 6.0, "SpecExec": 40.0 + reach}[type(decoder).__name__]

    parts: dict[str, Any] = {
        "build": lambda check: models,
        "_decoded": lambda models, decoder, ids, check: 2.4 if isinstance(decoder, Baseline) else 5.0,
        "_generate": lambda models, ids, check: {"generate": 7.0, "generate_compiled": "no compiler"},
        "_not_captured": lambda models, ids, check: None,
        "_round": whole_round,
    }
    for name, part in parts.items():
        monkeypatch.setattr(hardware_check, name, part)
    monkeypatch.setattr(hardware_check.call_costs, "measure", lambda *given: costs)
    bounds = {
        id(models["target"]): BandwidthBound(100, 20, 60.0, 80.0),
        id(models["draft"]): BandwidthBound(8, 1, 30.0, 80.0),
    }
    monkeypatch.setattr(hardware_check.bandwidth, "measure", lambda model, context: bounds[id(model)])

    def invariant_costs(check: Any) -> dict[str, Any]:
        def cost(value: float) -> float:
            if error := failing.get("invariant"):
                raise error
            return value

        names = ("invariant_step", "invariant_tree", "invariant_together", "invariant_prompt")
        return {name: partial(cost, 1.5 + number) for number, name in enumerate(names)}

    monkeypatch.setattr(hardware_check.NumericsCheck, "costs", invariant_costs)
    return hardware_check.measure(hardware_check.HardwareCheck("tiny", gamma=3)), rounds


def test_every_line_has_its_own_number_and_what_is_wanted_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    result, rounds = measured(monkeypatch)
    shown = [(each["measured"], each["unit"], each["wanted"]) for each in result["table"]]
    assert shown == [
        (2400.0, "ms", None), (pytest.approx(2.0 / 2.4), "", {"at_least": 0.85}),
        (500.0, "ms", None), (pytest.approx(0.3 / 0.5), "", {"at_least": 0.70}),
        (1.5, "", {"at_most": 1.05}), (2.0, "", {"at_most": 1.05}),
        (5000.0, "ms", None), (pytest.approx(5.0 / (3 * 0.5 + 2.75)), "", {"at_most": 1.03}),
        (48000.0, "ms", None), (pytest.approx(48 / (0.5 + 7 * 1.25 + 8)), "", {"at_most": 1.10}),
        (56000.0, "ms", None), (pytest.approx(56 / (0.5 + 15 * 1.25 + 10)), "", {"at_most": 1.10}),
        (3000.0, "ms", None), (pytest.approx(3 / 2.4), "", {"at_most": 1.25}),
        (6000.0, "ms", None), (pytest.approx(6 / 5), "", {"at_most": 1.4}),
        (1.5, "", {"at_most": 1.04}), (2.5, "", None), (3.5, "", None), (4.5, "", None),
        (7000.0, "ms", None), (None, "ms", None),
    ]  # fmt: skip
    assert [each["reason"] for each in result["table"]] == [""] * 21 + ["no compiler"]
    assert (result["share_of_copy"], result["round_over_parts"]) == (pytest.approx(2 / 2.4), pytest.approx(5 / 4.25))
    assert rounds == [("SpecExec", 8, 1), ("SpecExec", 16, 1), ("Baseline", 0, ROWS), ("Chain", 3, ROWS)]


def test_where_memory_does_not_suffice_a_line_and_its_ratio_are_empty_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, _ = measured(monkeypatch, Baseline=MemoryError("16 prompts"), SpecExec=MemoryError("a tree"))
    empty = {each["name"]: each["reason"] for each in result["table"] if each["measured"] is None}
    tree, rows = (f"memory does not suffice: {what}" for what in ("a tree", "16 prompts"))
    assert empty == {
        "tree round, 128 nodes, depth 8": tree, "tree round, 256 nodes, depth 16": tree, "  / its forwards": tree,
        "16 prompts together: plain step": rows, "  / one prompt's step": rows,
        "generate() compiled, a token": "no compiler",
    }  # fmt: skip
    for line in result["lines"]:
        assert all(line.endswith(reason) for name, reason in empty.items() if line.startswith(name))


def test_a_model_without_invariant_numerics_leaves_their_costs_empty_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, _ = measured(monkeypatch, invariant=ModelError("numerics is invariant, but it cannot be"))
    empty = {each["name"]: each["reason"] for each in result["table"] if each["measured"] is None}
    assert empty.pop("generate() compiled, a token") == "no compiler"
    assert len(empty) == 4
    assert set(empty.values()) == {"numerics is invariant, but it cannot be"}


def test_what_is_no_lack_of_memory_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="an illegal access"):
        measured(monkeypatch, Chain=RuntimeError("an illegal access"))


def test_a_ratio_has_the_reason_of_whichever_part_is_missing() -> None:
    lines = {each.name: each for each in quantities({"round": 1.0, "plain_together": 1.0}, {"round_parts": "x"}, 2)}
    assert lines["  / its parts"].reason == "x"
    assert lines["  / one prompt's step"].reason == NOT_FOR_RATIO
    assert {each.reason for each in quantities({}, {"all": "nothing"}, 2)} == {"nothing"}


@pytest.mark.parametrize("compiled", [False, True])
def test_generate_is_timed_after_a_first_time_and_one_that_fails_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    asked: list[bool] = []

    def timed(way: Any, ids: Any, new_tokens: int, seed: int) -> Any:
        asked.append(bool(way.options))
        if way.options:
            raise RuntimeError("no compiler\nand more")
        return SimpleNamespace(seconds=new_tokens * (50.0 if len(asked) == 1 else 0.5))

    monkeypatch.setattr(hardware_check, "timed", timed)
    check = hardware_check.HardwareCheck(new_tokens=8, repeats=3, compiled=compiled)
    reasons = {"generate_compiled": "no compiler"} if compiled else {}
    assert hardware_check._generate({}, [3, 4], check) == {"generate": 0.5, **reasons}
    assert asked == ([False, True, False, False, False] if compiled else [False] * 4)


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
