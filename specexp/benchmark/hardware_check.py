"""Compares decoding with the hardware's limits, for models of a known shape with random weights: no download.

One process measures the share of a copy's bandwidth that a plain step reaches, the cost of verifying n positions
relative to that step, a whole round relative to the sum of its forwards, and transformers' generate(), plain and
compiled, for comparison. Random models agree only by chance. So no speed-up is possible here, and a round costs what it
costs at any acceptance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specexp.benchmark import peers
from specexp.benchmark.contenders import timed
from specexp.benchmark.peers import Peer
from specexp.benchmark.shapes import SHAPES
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.engine.request_state import Decoder
from specexp.errors import first_line
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import DTYPES
from specexp.lm.model import Model
from specexp.profiling import bandwidth, call_costs

TREES = (call_costs.TreeRound(16, 4, 4), call_costs.TreeRound(64, 8, 8), call_costs.TreeRound(128, 8, 16))
WANTED = {"share_of_copy": 0.8, "v(5)": 1.1, "round_over_parts": 1.05}


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


def build(check: HardwareCheck) -> dict[Role, HFModel]:
    """The pair of models, with random weights."""
    roles: tuple[Role, ...] = ("target", "draft")
    models: dict[Role, HFModel] = {}
    for role in roles:
        torch.manual_seed(len(models))
        config = LlamaConfig(**SHAPES[check.shape][role], bos_token_id=1, eos_token_id=None, pad_token_id=0)
        with torch.device(check.device):
            module = LlamaForCausalLM._from_config(config, dtype=DTYPES[check.dtype])
        models[role] = HFModel(module.eval(), f"{check.shape} {role}")
    return models


def measure(check: HardwareCheck) -> dict[str, Any]:
    """All numbers, as JSON: seconds, bytes a second, and ratios of them."""
    models = build(check)
    target = models["target"]
    ids = [3 + (7 * i) % 200 for i in range(check.context)]
    gammas, trees = range(1, check.gamma + 1), TREES
    result = call_costs.measure(models, ids, gammas, trees, check.repeats)
    chain: Decoder = Chain(DraftModel(check.gamma), Lossless(), Warp())
    # Untimed first: each shape is captured when it first occurs.
    decoded = [
        {
            name: _decoded(models, decoder, ids, check)
            for name, decoder in (("plain", Baseline(Warp())), ("round", chain))
        }
        for _ in range(check.repeats + 1)
    ][1:]
    at = bandwidth.measure(target, check.context + 1)
    assert result.draft_step is not None
    plain, whole = (median(each[name] for each in decoded) for name in ("plain", "round"))
    parts = check.gamma * result.draft_step + result.target[check.gamma + 1]
    return {
        "check": {name: getattr(check, name) for name in check.__slots__},
        "models": {role: model.facts() for role, model in models.items()},
        "torch": torch.__version__,
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
            **_generate(models, ids, check),
        },
        "v": {n: result.v(n) for n in sorted(result.target)},
        "v_tree": {n: result.v_tree(n) for n in sorted(result.tree_target)},
        "share_of_copy": at.seconds / plain,
        "round_over_parts": whole / parts,
        "wanted": WANTED,
    }


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
    """The numbers, one per line, with the wanted values."""
    seconds, wanted = result["seconds"], result["wanted"]
    facts = result["models"]["target"]
    lines = [f"{facts['device_name']}, {facts['dtype']}, recordings {facts['graphs']}, torch {result['torch']}"]
    lines += [f"{name:28} {_shown(value)}" for name, value in seconds.items() if value is not None]
    lines += [f"{'copy':28} {result['copy_bytes_per_second'] / 1e9:8.1f} GB/s"]
    lines += [f"v({n}){'':{25 - len(str(n))}} {value:8.3f}" for n, value in result["v"].items() if n > 1]
    lines += [f"v_tree({n}){'':{20 - len(str(n))}} {value:8.3f}" for n, value in result["v_tree"].items()]
    lines += [f"{'share_of_copy':28} {result['share_of_copy']:8.3f} (wanted: {wanted['share_of_copy']} or more)"]
    lines += [
        f"{'round_over_parts':28} {result['round_over_parts']:8.3f} (wanted: {wanted['round_over_parts']} or less)"
    ]
    return "\n".join(lines)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value * 1e3:8.3f} ms"
