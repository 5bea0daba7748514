"""Compares decoding with the hardware's limits, for models of a known shape with random weights: no download.

One process measures the share of a copy's bandwidth that a plain step reaches, the cost of verifying n positions
relative to that step, a whole round relative to the sum of its forwards, and transformers' generate(), plain and
compiled, for comparison. Random models agree only by chance. So no speed-up is possible here, and a round costs what it
costs at any acceptance.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from specexp.benchmark import hardware_table, peers
from specexp.benchmark.contenders import timed
from specexp.benchmark.numerics_check import NumericsCheck
from specexp.benchmark.peers import Peer
from specexp.benchmark.shapes import SHAPES
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine, Request
from specexp.engine.request_state import Decoder
from specexp.errors import ModelError, first_line
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import DTYPES
from specexp.lm.model import Model
from specexp.lm.out_of_memory import is_exhausted
from specexp.profiling import bandwidth, call_costs

SMALL_TREES = (call_costs.TreeRound(16, 4, 4), call_costs.TreeRound(64, 8, 8))
MEASURED_ROUNDS = 8  # of each generation whose rounds are timed one by one


@dataclass(frozen=True, slots=True)
class HardwareCheck:
    """What is measured: models of a shape after a prompt of `context` tokens, chains of up to `gamma`."""

    shape: str = "llama-8b-1b"
    device: str = "cpu"
    dtype: str = "bfloat16"
    gamma: int = 4
    context: int = 512
    new_tokens: int = 128
    repeats: int = 5
    compiled: bool = True


def build(check: HardwareCheck, roles: Sequence[Role] = ("target", "draft")) -> dict[Role, HFModel]:
    """The models of these roles, with random weights."""
    models: dict[Role, HFModel] = {}
    for role in roles:
        torch.manual_seed(len(models))
        config = AutoConfig.for_model(**SHAPES[check.shape][role], bos_token_id=1, eos_token_id=None, pad_token_id=0)
        with torch.device(check.device):
            module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[check.dtype])
        models[role] = HFModel(module.eval(), f"{check.shape} {role}")
    return models


def measure(check: HardwareCheck) -> dict[str, Any]:
    """All numbers, as JSON: seconds, bytes a second, and ratios of them."""
    models = build(check)
    ids = [3 + (7 * i) % 200 for i in range(check.context)]
    gammas = sorted({*range(1, check.gamma + 1), 4, 7})
    shapes = (*SMALL_TREES, *(tree.round for tree in hardware_table.TREES))
    result = call_costs.measure(models, ids, gammas, shapes, check.repeats)
    chain: Decoder = Chain(DraftModel(check.gamma), Lossless(), Warp())
    # Untimed first: each shape is captured when it first occurs.
    decoded = [
        {
            name: _decoded(models, decoder, ids, check)
            for name, decoder in (("plain", Baseline(Warp())), ("round", chain))
        }
        for _ in range(check.repeats + 1)
    ][1:]
    at, draft_at = (bandwidth.measure(models[role], check.context + 1) for role in ("target", "draft"))
    plain, whole = (median(each[name] for each in decoded) for name in ("plain", "round"))
    parts = _chain_forwards(result, check.gamma)
    generated = _generate(models, ids, check)
    numbers: dict[str, float | None] = {
        "plain_step": plain,
        "plain_forward": result.target[1],
        "draft_step": result.draft_step,
        "target_bound": at.seconds,
        "draft_bound": draft_at.seconds,
        "target_5": result.target[5],
        "target_8": result.target[8],
        "round": whole,
        "round_parts": parts,
        **{name: value for name, value in generated.items() if not isinstance(value, str)},
    }
    failed = {name: value for name, value in generated.items() if isinstance(value, str)}
    if not check.compiled:
        failed["generate_compiled"] = "it was not asked for (compiled=false)"
    for name, work in _further(models, ids, check, result).items():
        try:
            numbers[name] = work()
        except ModelError as error:
            failed[name] = first_line(error)
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            failed[name] = f"memory does not suffice: {first_line(error)}"
    return {
        **described(check),
        "models": {role: model.facts() for role, model in models.items()},
        "copy_bytes_per_second": at.copy_large,
        "copy_bytes_per_second_at_weights": at.copy_at_weights,
        "step_bytes": at.weight_bytes + at.cache_bytes,
        "seconds": {
            "floor": at.seconds,
            "plain_forward": result.target[1],
            "plain_step": plain,
            "plain_forward_not_captured": _not_captured(models, ids, check),
            "draft_forward": result.draft_step,
            "round": whole,
            **generated,
        },
        "v": {n: result.v(n) for n in sorted(result.target)},
        "v_tree": {n: result.v_tree(n) for n in sorted(result.tree_target)},
        "share_of_copy": at.seconds / plain,
        "round_over_parts": whole / parts,
        **_table(numbers, failed, check),
    }


def unmeasured(check: HardwareCheck, reason: str) -> dict[str, Any]:
    """What `measure` would give, with every cell empty: nothing was built."""
    empty: dict[str, Any] = {"models": {}, "seconds": {}, "v": {}, "v_tree": {}}
    return {
        **described(check), **empty, "share_of_copy": None, "round_over_parts": None,
        **_table({}, {"all": reason}, check),
    }  # fmt: skip


def described(check: Any) -> dict[str, Any]:
    """What is measured, and by which versions."""
    driver = Path("/proc/driver/nvidia/version")
    return {
        "check": {name: getattr(check, name) for name in check.__slots__},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "driver": driver.read_text(encoding="utf-8").splitlines()[0] if driver.is_file() else "",
    }


def _table(numbers: Mapping[str, float | None], failed: Mapping[str, str], check: HardwareCheck) -> dict[str, Any]:
    lines = hardware_table.quantities(numbers, failed, check.gamma, 2 * check.context)
    wanted = {"share_of_copy": 0.85, "v(5)": 1.05, "round_over_parts": 1.03}
    return {"wanted": wanted, "table": [line.as_json() for line in lines], "lines": [line.line() for line in lines]}


def _further(
    models: Mapping[Role, HFModel], ids: Sequence[int], check: HardwareCheck, costs: call_costs.Costs
) -> dict[str, Callable[[], float]]:
    """What is measured after the calls, by name: rounds of trees and their forwards, several prompts together, and the
    same with invariant numerics."""
    result: dict[str, Callable[[], float]] = {}
    for tree in hardware_table.TREES:
        decoder = SpecExec(tree.nodes, tree.depth, Warp(), parallel_branches=tree.branches)
        result[f"tree_{tree.nodes}"] = partial(_round, models, decoder, ids, check, tree.depth)
        result[f"tree_{tree.nodes}_parts"] = partial(_forwards, costs, tree)
    chain: Decoder = Chain(DraftModel(check.gamma), Lossless(), Warp())
    result["plain_together"] = partial(_round, models, Baseline(Warp()), ids, check, 0, hardware_table.ROWS)
    result["round_together"] = partial(_round, models, chain, ids, check, check.gamma, hardware_table.ROWS)
    tree, prompt = hardware_table.TREES[0], [*ids, *ids]
    numerics = NumericsCheck(
        models["target"],
        prompt,
        tree.round,
        lambda one: _round(one, Baseline(Warp()), ids, check, 0, hardware_table.ROWS),
        check.repeats,
    )
    return {**result, **numerics.costs()}


def _chain_forwards(costs: call_costs.Costs, gamma: int) -> float:
    """Seconds of the forwards of a chain's round: gamma draft steps, and the target's call on what they drafted."""
    assert costs.draft_step is not None
    return gamma * costs.draft_step + costs.target[gamma + 1]


def _forwards(costs: call_costs.Costs, tree: hardware_table.CheckedTree) -> float:
    """Seconds of the forwards of a tree's round: the draft's at the root and on each further level, the target's."""
    return costs.tree_round(tree.round)


def _round(
    models: Mapping[Role, Model], decoder: Decoder, ids: Sequence[int], check: HardwareCheck, reach: int, rows: int = 1
) -> float:
    """Median seconds of a round of `rows` prompts together, of those that may draft `reach` tokens.

    Each prompt is another one: the same ids from another place on.
    """
    limit = MEASURED_ROUNDS + reach + 1
    engine = Engine(models, max_batch_size=rows)
    seconds: list[float] = []
    for repeat in range(2):  # the first one captures what it needs
        stamps: list[tuple[float, int]] = []
        left = [limit]

        def note(tokens: Sequence[int], stamps: list[tuple[float, int]] = stamps, left: list[int] = left) -> None:
            left[0] -= len(tokens)
            stamps.append((time.perf_counter(), left[0]))

        requests = (
            Request(decoder, [*ids[row:], *ids[:row]], limit, CertainRng(), None if row else note)
            for row in range(rows)
        )
        for _ in engine.generate_all(requests):
            pass
        pairs = itertools.pairwise(stamps)
        seconds = [after - before for (before, remaining), (after, _) in pairs if remaining > reach]
        assert seconds or not repeat, "no round had room for all that it may draft"
    return median(seconds)


def _decoded(models: Mapping[Role, Model], decoder: Decoder, ids: Sequence[int], check: HardwareCheck) -> float:
    """Seconds of a round, without the prefill."""
    out = Engine(models).generate(decoder, ids, check.new_tokens, CertainRng())
    return out.seconds / out.num_rounds


def _not_captured(models: Mapping[Role, HFModel], ids: Sequence[int], check: HardwareCheck) -> float | None:
    """Seconds of a plain step whose kernels are launched one by one; None where no step is captured."""
    target = models["target"]
    if target.graph_pools is None:
        return None
    return call_costs.measure({"target": target.without_graphs()}, ids, (), repeats=check.repeats).target[1]


def _generate(models: Mapping[Role, HFModel], ids: Sequence[int], check: HardwareCheck) -> dict[str, float | str]:
    """Seconds a token of transformers' generate(), prefill included; where it fails, the reason."""
    peer = Peer({str(role): model for role, model in models.items()}, ())
    ways = {"generate": peer, "generate_compiled": replace(peer, options=peers.compiled())}
    if not check.compiled:
        del ways["generate_compiled"]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    for repeat in range(check.repeats + 1):  # the first repeat warms up
        for name, way in ways.items():
            if name in failed:
                continue
            try:
                took = timed(way, ids, check.new_tokens, 0).seconds
            except Exception as error:  # a compiler is an external program and may raise anything
                failed[name] = first_line(error)
                continue
            seconds[name] += [took / check.new_tokens] if repeat else []
    return {name: failed.get(name) or median(times) for name, times in seconds.items()}


def table(result: Mapping[str, Any]) -> str:
    """The table, and further numbers, one a line."""
    facts = result["models"].get("target")
    head = f"shape {result['check']['shape']}, torch {result['torch']}, transformers {result['transformers']}"
    if facts:
        head = f"{facts['device_name']}, {facts['dtype']}, recordings {facts['graphs']}, {head}"
    lines = [
        f"{name:44} {_shown(value)}"
        for name, value in result["seconds"].items()
        if value is not None and not name.startswith("generate")
    ]
    if facts:
        lines += [f"{'copy':44} {result['copy_bytes_per_second'] / 1e9:9.1f} GB/s"]
    lines += [f"v({n}){'':{41 - len(str(n))}} {value:9.3f}" for n, value in result["v"].items() if n > 1]
    lines += [f"v_tree({n}){'':{36 - len(str(n))}} {value:9.3f}" for n, value in result["v_tree"].items()]
    return "\n".join(
        [hardware_table.text(head, result["lines"]), *lines, *([result["driver"]] if result["driver"] else [])]
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value * 1e3:11.3f} ms"
