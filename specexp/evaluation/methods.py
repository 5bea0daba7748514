"""From a method's name to its decoder: the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from specexp.config import MethodConfig
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder


def _specexec(method: MethodConfig, warp: Warp) -> SpecExec:
    assert method.tree is not None, f"{method.label} has no tree"
    return SpecExec(warp=warp, **asdict(method.tree))


BUILDERS: dict[str, Callable[[MethodConfig, Warp], Decoder]] = {
    "baseline": lambda method, warp: Baseline(warp),
    "draft_only": lambda method, warp: Baseline(warp, "draft"),
    "speculative": lambda method, warp: Chain(DraftModel(method.gamma), Lossless(), warp),
    "specexec": _specexec,
}
# Methods whose output distribution is the target's.
LOSSLESS = frozenset({"baseline", "speculative", "specexec"})


def decoder_for(method: MethodConfig, warp: Warp) -> Decoder:
    return BUILDERS[method.method](method, warp)
