"""From a method's name to its decoder: the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from specexp.config import MethodConfig
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless, Rule
from specexp.decoding.lossy_rules import Judged, TopK
from specexp.decoding.protocol import RequiredHidden, Role
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder
from specexp.judge import features
from specexp.judge.judge import Judge


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a method is made with besides its own settings."""

    warp: Warp
    judges: Mapping[str, Judge] = field(default_factory=dict)  # by the name that a method gives
    eos_ids: tuple[int, ...] = ()


def _chain(method: MethodConfig, making: BuildContext, rule: Rule) -> Chain:
    return Chain(DraftModel(method.gamma, method.min_draft_probability), rule, making.warp, method.bonus)


def _autojudge(method: MethodConfig, making: BuildContext) -> Chain:
    judge = making.judges[method.judge]
    mode = features.mode(judge.facts.features)
    threshold = judge.facts.threshold if method.threshold is None else method.threshold
    needs = mode.needs if threshold > 0 else RequiredHidden()  # at 0 it is the lossless chain, at its price
    return _chain(method, making, Judged(judge.network, mode.parts, threshold, making.eos_ids, needs))


def _specexec(method: MethodConfig, making: BuildContext) -> SpecExec:
    assert method.tree is not None, f"{method.label} has no tree"
    return SpecExec(warp=making.warp, **asdict(method.tree))


BUILDERS: dict[str, Callable[[MethodConfig, BuildContext], Decoder]] = {
    "baseline": lambda method, making: Baseline(making.warp),
    "draft_only": lambda method, making: Baseline(making.warp, "draft"),
    "speculative": lambda method, making: _chain(method, making, Lossless()),
    "lookup": lambda method, making: Chain(
        Lookup(method.gamma, method.max_ngram), Lossless(), making.warp, method.bonus
    ),
    "autojudge": _autojudge,
    "topk": lambda method, making: _chain(method, making, TopK(method.accept_k)),
    "specexec": _specexec,
}
# Methods whose output distribution is the target's.
LOSSLESS = frozenset({"baseline", "speculative", "lookup", "specexec"})


def is_lossless(method: MethodConfig, temperature: float) -> bool:
    """Whether the output has the target's distribution, a lossy method's dial at its lossless end included."""
    if method.method == "autojudge":
        return method.threshold == 0
    if method.method == "topk":
        return method.accept_k == 1 and temperature == 0
    return method.method in LOSSLESS


def roles_of(method: MethodConfig) -> set[Role]:
    """The models that a method asks, known before any is loaded."""
    alone: dict[str, set[Role]] = {"baseline": {"target"}, "lookup": {"target"}, "draft_only": {"draft"}}
    return alone.get(method.method, {"target", "draft"})


def decoder_for(method: MethodConfig, making: BuildContext) -> Decoder:
    return BUILDERS[method.method](method, making)
