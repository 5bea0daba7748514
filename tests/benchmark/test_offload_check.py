"""`speed_check --offload`: a tiny target whose layers come at each call, measured from beginning to end on a CPU."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from entrypoints.speed_check import command
from helpers.cli_runner import invoke, is_refused
from specexp.benchmark import offload_check, offload_models, offload_table
from specexp.benchmark.assumed_acceptance import best_tree, chain_tokens
from specexp.benchmark.offload_check import OffloadCheck
from specexp.benchmark.offload_models import DrawnWeights, shares_storage
from specexp.benchmark.offload_table import OffloadNumbers
from specexp.benchmark.shapes import SHAPES
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.streaming import streamed_layers
from specexp.lm.streaming.transports import ALIGNED
from specexp.profiling.call_costs import Costs

NAMES = ("plain", "chain_4", "tree_16", "tree_64", "tree_256", "tree_1024", "tree_2048")
LITTLE = 100  # bytes that are free: a layer's are more


def layer_bytes(itemsize: int) -> int:
    """The bytes of a tiny target's layer, each weight at a multiple of `ALIGNED`."""
    shape = SHAPES["tiny"]["target"]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    numbers = [hidden * hidden] * 2 + [hidden * keys] * 2 + [hidden * inner] * 3 + [hidden] * 2
    return sum(math.ceil(number * itemsize / ALIGNED) * ALIGNED for number in numbers)


def printed(output: str, name: str) -> float:
    """The number in the line of this name."""
    (line,) = (line for line in output.splitlines() if line.startswith(f"{name} "))
    return float(line.removeprefix(name).split()[0])


def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload_models, "available_bytes", lambda kind, folder: LITTLE)


@pytest.mark.slow
def test_a_tiny_offloaded_pair_is_measured_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    done = invoke(
        command, "--shape", "tiny", "--device", "cpu", "--offload", "cpu", "--acceptance", "0.8", "--json", str(path)
    )
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    table = {each["name"]: each for each in result["table"]}
    assert len(table) == len(result["table"]), "each line has a name of its own"
    assert all(each["measured"] > 0 and not each["reason"] for each in table.values())
    for line in result["lines"]:
        assert line in done.output
    num_layers = SHAPES["tiny"]["target"]["num_hidden_layers"]
    assert result["copies_per_call"] == num_layers
    assert result["bytes_per_call"] == num_layers * layer_bytes(2)
    seconds = result["seconds"]
    share = table["  share of that bandwidth"]
    assert share["wanted"] == {"at_least": 0.9}
    assert share["measured"] == result["share_of_bandwidth"]
    assert share["measured"] == pytest.approx(
        result["bytes_per_call"] / result["copy_bytes_per_second"] / seconds["call"]
    )
    assert seconds["max_transfer_compute"] == max(seconds["transfer"], seconds["compute"])
    assert result["v"].keys() == result["v_by_hooks"].keys() == {"1", "16", "64", "256", "1024", "2048"}
    assert result["v"]["1"] == result["v_by_hooks"]["1"] == 1
    for nodes in offload_table.NODES:
        assert result["v"][str(nodes)] == table[f"v({nodes})"]["measured"]
        assert result["v"][str(nodes)] == pytest.approx(seconds["target"][f"tree_{nodes}"] / seconds["call"])
        assert table[f"v({nodes})"]["wanted"] == {"at_most": 1.1}
    assert tuple(result["tokens_per_second"]) == NAMES
    assert result["expected_tokens"]["plain"] == 1
    assert result["expected_tokens"]["chain_4"] == pytest.approx(1 + 0.8 + 0.8**2 + 0.8**3 + 0.8**4)
    assert table["plain decoding: tokens per second"]["measured"] == pytest.approx(1 / seconds["call"])
    for name, shown in zip(NAMES[1:], ("chain of 4", *(f"tree of {n}" for n in offload_table.NODES)), strict=True):
        draft, target, tokens, rate, gain = (
            printed(done.output, f"{shown}: {what}")
            for what in (
                "draft's calls", "target's call", "expected tokens of a round", "tokens per second", "/ plain decoding",
            )
        )  # fmt: skip
        assert rate == pytest.approx(tokens / (draft + target) * 1e3, rel=2e-3), "they have three decimals"
        assert rate == pytest.approx(result["tokens_per_second"][name], abs=5e-4)
        assert gain == pytest.approx(rate * seconds["call"], rel=2e-3, abs=1e-3)
        exact = seconds["draft"][name] + seconds["target"][name]
        assert result["tokens_per_second"][name] == pytest.approx(result["expected_tokens"][name] / exact)
    assert result["offload"]["shared_storage"] is False
    assert "each layer has weights of its own" in done.output
    assert result["check"]["acceptance"] == 0.8


def copies_of(target: Any, calls: int = 3) -> tuple[int, int]:
    """Copies and bytes of so many calls of one token, after a first one."""
    streamed = target.offload.streamed
    session, ids = target.streamed.session(), target.streamed.ids([5])
    session.feed(ids, rows=1)
    copies, moved = streamed.stream.num_copies, streamed.transport.num_bytes
    for _ in range(calls):
        session.feed(ids, rows=1)
    return streamed.stream.num_copies - copies, streamed.transport.num_bytes - moved


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_where_memory_is_short_layers_share_storage_and_each_is_copied_still(
    kind: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shared:
        little(monkeypatch)
    drawn: Counter[str] = Counter()
    draw = DrawnWeights.drawn

    def counted(self: DrawnWeights, name: str, like: torch.Tensor) -> torch.Tensor:
        drawn[name] += 1
        return draw(self, name, like)

    monkeypatch.setattr(DrawnWeights, "drawn", counted)
    target = offload_models.build("tiny", "cpu", "float32", kind, 0)
    assert target.shared == shared
    assert target.needed == 4 * layer_bytes(4)
    assert target.available == LITTLE if shared else target.available > target.needed
    streamed: Any = target.offload.streamed
    if kind == "cpu":
        storages = {flat.data_ptr() for flat in streamed.transport._source.flat.values()}
    else:
        storages = {path.name for path in Path(target.offload.folder).iterdir()}
    assert len(storages) == (1 if shared else 4)
    layers = {name.split(".")[2] for name in drawn if ".layers." in name}
    assert layers == ({"0"} if shared else {"0", "1", "2", "3"}), "of shared layers one is drawn"
    assert all(p.device.type == "meta" for p in target.streamed.module.model.layers.parameters())
    assert copies_of(target) == (3 * 4, 3 * 4 * layer_bytes(4))
    ids = target.streamed.ids([5, 9, 11])
    ours, hooked, resident = (
        each.session().feed(ids, rows=3)[0] for each in (target.streamed, target.hooked, target.resident)
    )
    assert torch.equal(ours, hooked), "accelerate's hooks bring the same weights"
    assert torch.equal(ours, resident) == shared, "the model in memory has one layer's weights for all"


def test_layers_that_stay_are_not_needed_elsewhere_and_stay_for_the_hooks() -> None:
    memory = (1 + 2) * 1.01 * layer_bytes(4) / 2**30  # two buffers and a layer
    target = offload_models.build("tiny", "cpu", "float32", "cpu", memory)
    streamed: Any = target.offload.streamed
    assert len(streamed.resident) == 1
    assert target.needed == 3 * layer_bytes(4)
    assert copies_of(target) == (3 * 3, 3 * 3 * layer_bytes(4))
    ids = target.streamed.ids([5, 9, 11])
    ours, hooked = (each.session().feed(ids, rows=3)[0] for each in (target.streamed, target.hooked))
    assert torch.equal(ours, hooked)
    weights = [each.module.model.layers[0].mlp.up_proj.weight for each in (target.streamed, target.hooked)]
    assert weights[0] is weights[1]


@pytest.mark.parametrize("needed,available,shared", [(80, 100, False), (81, 100, True), (1, 0, True), (0, 0, False)])
def test_layers_share_storage_beyond_most_of_what_is_available(needed: int, available: int, shared: bool) -> None:
    assert shares_storage(needed, available) == shared


def test_what_is_available_is_what_a_container_may_take(tmp_path: Path) -> None:
    assert offload_models.available_bytes("cpu", "") > 0
    assert offload_models.available_bytes("disk", str(tmp_path)) > 0
    assert offload_models._left_in_cgroup(tmp_path) is None
    for limit, expected in (("max", None), ("1000", 450), ("500", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("600\n")
        (tmp_path / "memory.stat").write_text("anon 550\ninactive_file 50\n")
        assert offload_models._left_in_cgroup(tmp_path) == expected


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> OffloadCheck:
    """A check of one small tree."""
    monkeypatch.setattr(offload_table, "NODES", (4,))
    return OffloadCheck("tiny", "cpu", "float32", 2, acceptance=0.6, context=8, repeats=1)


def measured(result: dict[str, Any]) -> dict[str, Any]:
    return {each["name"].strip(): each for each in result["table"]}


def test_copies_and_bytes_of_a_call_are_counted_with_shared_layers_and_without(
    small: OffloadCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = replace(small, repeats=0)
    results = [offload_check.measure(once)]
    little(monkeypatch)
    results.append(offload_check.measure(once))
    for result in results:
        assert (result["copies_per_call"], result["bytes_per_call"]) == (4, 4 * layer_bytes(4))
        assert result["share_of_bandwidth"] * result["seconds"]["call"] == pytest.approx(
            4 * layer_bytes(4) / result["copy_bytes_per_second"]
        )
        assert all(each["measured"] > 0 for each in result["table"])
        assert result["repeats"] == 1
        assert result["expected_tokens"] == {"plain": 1, "chain_2": pytest.approx(1.96), "tree_4": pytest.approx(2.416)}
    own, shared = (result["offload"] for result in results)
    assert (own["shared_storage"], shared["shared_storage"]) == (False, True)
    assert "the layers share storage" in offload_check.table(results[1])
    assert "the layers share storage" not in offload_check.table(results[0])


def test_layers_on_disk_are_also_read_alone(small: OffloadCheck) -> None:
    result = offload_check.measure(replace(small, offload="disk", repeats=0))
    table = measured(result)
    assert all(each["measured"] > 0 for each in table.values())
    assert table["those bytes read from disk"]["measured"] * 1e9 == pytest.approx(result["read_bytes_per_second"])
    slower = min(result["read_bytes_per_second"], result["copy_bytes_per_second"])
    assert result["seconds"]["transfer"] == pytest.approx(4 * layer_bytes(4) / slower)
    assert (result["copies_per_call"], result["bytes_per_call"]) == (4, 4 * layer_bytes(4))


def test_both_ways_of_offloading_are_timed_in_turns(small: OffloadCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    run = HFModel.run_module

    def noted(self: HFModel, tokens: torch.Tensor, *given: Any, **more: Any) -> Any:
        log.append((self.name, tokens.shape[0]))
        return run(self, tokens, *given, **more)

    monkeypatch.setattr(HFModel, "run_module", noted)
    offload_check.measure(small)
    turns = [name for name, _ in itertools.groupby(name for name, _ in log)]
    ours, hooks = "tiny target", "tiny target, by accelerate"
    assert turns == 2 * [ours, hooks, "tiny target, in memory", ours, hooks]
    assert Counter(log)[ours, 5] == Counter(log)[hooks, 5] == 2, "a tree of 4 nodes and its root, in each repeat"
    assert Counter(log)[ours, 3] == 2 * 2, "a chain of 2"


def test_what_fails_leaves_its_cells_empty_with_the_reason(
    small: OffloadCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = HFModel.run_module

    def failing(self: HFModel, tokens: torch.Tensor, *given: Any, **more: Any) -> Any:
        if self.name.endswith("accelerate"):
            raise ValueError("these hooks hang")
        if tokens.shape[0] == 5 and "attention_mask" in more:
            raise MemoryError("no more")
        return run(self, tokens, *given, **more)

    monkeypatch.setattr(HFModel, "run_module", failing)
    result = offload_check.measure(small)
    table = measured(result)
    empty = {name: each["reason"] for name, each in table.items() if each["measured"] is None}
    short, hooks = "memory does not suffice: no more", "these hooks hang"
    assert empty == {
        "call of 1 token, accelerate's hooks": hooks,
        "/ the streamed call": hooks,
        "v(4)": short,
        "v(4), accelerate's hooks": hooks,
        "tree of 4: draft's calls": short,
        "tree of 4: target's call": short,
        "tree of 4: tokens per second": short,
        "tree of 4: / plain decoding": short,
    }
    assert table["chain of 2: tokens per second"]["measured"] > 0
    assert "None" not in offload_check.table(result)


def test_models_that_do_not_fit_leave_all_cells_empty(small: OffloadCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> None:
        raise MemoryError("out of it")

    monkeypatch.setattr(offload_models, "build", too_large)
    result = offload_check.measure(small)
    reasons = {each["reason"] for each in result["table"] if each["measured"] is None}
    assert reasons == {"memory does not suffice for the models: out of it"}
    full = {name for name, each in measured(result).items() if each["measured"] is not None}
    assert full == {"chain of 2: expected tokens of a round", "tree of 4: expected tokens of a round"}
    assert "None" not in offload_check.table(result)


def test_layers_that_all_stay_have_nothing_to_copy(small: OffloadCheck) -> None:
    check = OffloadCheck("tiny", "cpu", "float32", 2, offload_memory=1, context=8, repeats=0)
    result = offload_check.measure(check)
    table = measured(result)
    assert table["share of that bandwidth"]["reason"] == offload_check.STAYS
    assert table["call of 1 token, accelerate's hooks"]["reason"] == offload_check.STAYS
    assert table["plain decoding: tokens per second"]["measured"] > 0
    assert (result["bytes_per_call"], result["offload"]["resident_layers"]) == (None, 4)


def numbers_of(**more: Any) -> OffloadNumbers:
    streamed = Costs(0.01, {1: 1.0, 3: 1.5}, {8: 0.02}, {17: 1.25})
    return OffloadNumbers(streamed, None, 0.25, 90e9, 30, 100e9, **more)


def test_the_share_is_the_time_of_the_slower_way_over_the_calls() -> None:
    numbers = numbers_of()
    assert (numbers.transfer, numbers.share, numbers.bound) == (0.9, 0.9, 0.9)
    slow = numbers_of(read_bandwidth=200e9)
    assert slow.share == 0.9, "reading is faster than copying"
    assert numbers_of(read_bandwidth=90e9).share == 1.0
    assert (numbers.v(1), numbers.v(16), numbers.v(64), numbers.v(16, hooked=True)) == (1.0, 1.25, None, None)


def test_tokens_per_second_are_those_expected_over_all_calls_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload_table, "NODES", (16,))
    monkeypatch.setattr(offload_table, "trees", lambda acceptance: [best_tree(acceptance, 16, 2)])
    plain, chain, tree = offload_table.speeds(numbers_of(), 0.5, 2)
    assert plain.tokens_per_second == 1.0
    assert chain.tokens_per_second == pytest.approx(1.75 / (2 * 0.01 + 1.5))
    assert tree.draft == pytest.approx(0.01 + 0.02), "the root's call, and one on 8 nodes"
    assert tree.tokens_per_second == pytest.approx(best_tree(0.5, 16, 2).expected / (0.03 + 1.25))


@pytest.mark.parametrize("acceptance", [0.05, 0.5, 0.8, 0.99])
def test_a_chain_gives_one_token_and_those_before_the_first_rejection(acceptance: float) -> None:
    for gamma in (1, 4, 16):
        assert chain_tokens(acceptance, gamma) == pytest.approx(sum(acceptance**i for i in range(gamma + 1)))
        assert best_tree(0.99, gamma).expected == pytest.approx(chain_tokens(0.99, gamma)), "siblings add less"


@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.8])
def test_the_best_tree_has_the_most_probable_nodes(acceptance: float) -> None:
    """Against all nodes on up to six levels of up to six siblings."""
    every = [1.0]
    level = [1.0]
    for _ in range(6):
        level = [p * acceptance * (1 - acceptance) ** rank for p in level for rank in range(6)]
        every += level
    every = sorted(every, reverse=True)
    for nodes in (1, 2, 5, 11):
        assert best_tree(acceptance, nodes, 6).expected == pytest.approx(sum(every[: nodes + 1]))
    siblings = best_tree(acceptance, 7, deepest=1)
    assert (siblings.depth, siblings.expected) == (1, pytest.approx(2 - (1 - acceptance) ** 7))
    grown = [best_tree(acceptance, nodes).expected for nodes in offload_table.NODES]
    assert grown == sorted(grown)
    tree = best_tree(acceptance, 2048)
    assert tree.round.width * tree.depth >= 2048 > (tree.round.width - 1) * tree.depth


def test_the_page_on_gpus_says_what_trees_give() -> None:
    small, large = best_tree(0.8, 16), best_tree(0.8, 2048)
    said = f"16 nodes on {small.depth} levels give {small.expected:.1f} tokens, 2,048 on {large.depth} give"
    text = " ".join((Path(__file__).resolve().parents[2] / "docs" / "gpu.md").read_text().split())
    assert f"{said} {large.expected:.1f}." in text


def test_a_file_is_read_to_the_host_whatever_device_computes() -> None:
    """accelerate's table of weights on disk would read each to the device, from where it would come back."""
    table: Any = SimpleNamespace(dataset=SimpleNamespace(device="cuda:0"))
    part = SimpleNamespace(_hf_hook=SimpleNamespace(weights_map=table))
    streamed_layers.reader(streamed_layers.Slot(part, "weight", None))
    assert table.dataset.device == "cpu"


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--acceptance", "0.8"],
            "acceptance is 0.8, but offload is none: give --offload cpu or disk, or leave --acce",
        ),
        (["--offload-memory", "2"], "offload_memory is 2, but offload is none"),
        (["--offload", "nvme"], "offload is 'nvme'; known: none, cpu, disk."),
        (["--offload", "cpu", "--acceptance", "1"], "acceptance is '1'; it must be a number above 0 and below 1."),
        (["--offload", "cpu", "--acceptance", "0"], "acceptance is '0'; it must be a number above 0 and below 1."),
        (["--offload", "cpu", "--acceptance", "nan"], "acceptance is 'nan'; it must be a number above 0 and below 1."),
        (["--offload", "cpu", "--acceptance", "most"], "acceptance is 'most'; it must be a number"),
        (["--offload", "disk", "--offload_memory", "-1"], "offload_memory is '-1'; it must be a number >= 0"),
        (["--offload", "disk", "--offload_memory", "inf"], "offload_memory is 'inf'; it must be a number >= 0"),
        (["--offload", "cpu", "--no-compiled"], "generate() is not timed with --offload cpu: leave --compiled and"),
        (["--offload", "cpu", "--compiled"], "generate() is not timed with --offload cpu"),
        (["--shape", "llama-70b-8b"], "shape llama-70b-8b is measured with an offloaded target only: give --offload"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_anything_is_built(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload_models, "build", lambda *_: pytest.fail("a model was built"))
    is_refused(invoke(command, *arguments), message)


def test_without_a_gpu_the_cells_of_the_70b_shape_are_empty_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "speed.json"
    done = invoke(command, "--shape", "llama-70b-8b", "--offload", "cpu", "--json", str(path))
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    reasons = {each["reason"] for each in result["table"] if each["measured"] is None}
    assert reasons == {"no CUDA device here; device=cpu measures it on the CPU"}
    assert result["check"]["acceptance"] == 0.8
    assert set(result["tokens_per_second"].values()) == {None}
    assert "None" not in done.output


def test_the_70b_shape_has_the_parameters_of_llama_3_1() -> None:
    """70.6 billion and 8.03 billion, as the models are named; the meta device holds no values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for role, billions in (("target", 70.55), ("draft", 8.03)):
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES["llama-70b-8b"][role]))
        assert sum(p.numel() for p in module.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_an_offloaded_8b_shape_is_measured_on_a_gpu(tmp_path: Path) -> None:
    """Measured and whole; whether the numbers are good is for a person to read: no test asserts a time."""
    path = tmp_path / "speed.json"
    done = invoke(command, "--offload", "cpu", "--acceptance", "0.8", "--json", str(path))
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert result["copies_per_call"] == 32
    assert all(each["measured"] > 0 for each in result["table"])
