"""Builds the decoder of a method; the only place that lists the builders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from specexp.config import MethodConfig
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless, Proposer, Rule, Suffix, Verification
from specexp.decoding.draft_length import NOMINAL, RelativeCosts
from specexp.decoding.lossy_rules import Judged, TopK
from specexp.decoding.protocol import Needs, Role, SuffixLimits
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec, TreeRule
from specexp.decoding.untrained_rules import EntropyGate, FLy, Fuzzy, Typical
from specexp.engine import Decoder
from specexp.errors import JudgeError
from specexp.judge import features
from specexp.judge.judge import Judge
from specexp.lm.runtime import SAME, TEXT
from specexp.method_specs import installed, models_of, spec


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a method is built with in addition to its own settings."""

    warp: Warp
    judges: Mapping[str, Judge] = field(default_factory=dict)  # by the name in the method's settings
    eos_ids: tuple[int, ...] = ()
    costs: RelativeCosts = NOMINAL  # for drafts that adapt; where none were measured, the output keeps its distribution
    vocabulary: str = SAME  # how the draft's tokens become the target's


_PROPOSERS: Mapping[str, Callable[[MethodConfig, BuildContext], Proposer]] = {
    "draft": lambda method, context: DraftModel(
        method.gamma, method.min_draft_probability, method.draft_temperature,
        context.costs if method.auto_gamma else None,
    ),
    "lookup": lambda method, context: Lookup(method.gamma, method.max_ngram, method.min_match),
    "suffix": lambda method, context: Suffix(
        method.gamma, SuffixLimits(method.suffix_factor, method.suffix_min_probability), method.min_match
    ),
}  # fmt: skip


def _chain(method: MethodConfig, context: BuildContext, rule: Rule) -> Chain:
    return Chain(_PROPOSERS["draft"](method, context), rule, context.warp, method.bonus)


def _lossless(method: MethodConfig, context: BuildContext, proposer: Proposer) -> Chain:
    verification: Verification = "block" if method.rule == "block" else "token"
    if context.vocabulary == TEXT and "draft" in proposer.models:
        verification = "match"
    return Chain(proposer, Lossless(), context.warp, method.bonus, verification)


def _judged(method: MethodConfig, context: BuildContext) -> Judged:
    judge = context.judges[method.judge]
    check_judge(method, judge)
    mode = features.mode(judge.facts.features)
    threshold = effective_threshold(method, judge)
    assert threshold is not None, "a judge has a threshold"
    needs = mode.needs if threshold > 0 else Needs()  # at 0 it is the lossless method, at the same cost
    return Judged(judge.network, mode.parts, threshold, context.eos_ids, needs, context.warp)


def _topk(method: MethodConfig, context: BuildContext) -> TopK:
    return TopK(method.accept_k, method.accept_margin, context.warp)


def _typical(method: MethodConfig, context: BuildContext) -> Typical:
    epsilon, delta = _dial(method), method.accept_delta
    if delta is None:  # the root, as in the paper's experiments; with epsilon 1 the rule is then off
        delta = math.inf if epsilon == 1 else math.sqrt(epsilon)
    return Typical(epsilon, delta, context.warp)


def _entropy(method: MethodConfig, context: BuildContext) -> EntropyGate:
    return EntropyGate(_dial(method), context.warp)


def _fly(method: MethodConfig, context: BuildContext) -> Chain:
    return _chain(method, context, FLy(_dial(method), method.accept_window, context.eos_ids, context.warp))


def _fuzzy(method: MethodConfig, context: BuildContext) -> Chain:
    return _chain(method, context, Fuzzy(method.distance, _dial(method), context.warp))


def _dial(method: MethodConfig) -> float:
    assert method.dial is not None, f"{method.label} has no dial"
    return method.dial


def _specexec(method: MethodConfig, context: BuildContext, rule: TreeRule | None = None) -> SpecExec:
    assert method.tree is not None, f"{method.label} has no tree"
    return SpecExec(warp=context.warp, **asdict(method.tree), rule=rule)


def check_judge(method: MethodConfig, judge: Judge) -> None:
    """Raise JudgeError if a tree's judge reads what the draft does not compute: its states and q at every node."""
    mode = features.MODES.get(judge.facts.features)  # others are refused with the judge's pair
    if method.tree is not None and mode is not None and mode.reads_draft:
        raise JudgeError(
            f"judge '{method.judge}' reads {mode.name} features, but the draft has no hidden states at the leaves of"
            f" {method.label}'s tree; train a judge with features target or target_previous, with _scalars or without."
        )


BUILDERS: dict[str, Callable[[MethodConfig, BuildContext], Decoder]] = {
    "baseline": lambda method, context: Baseline(context.warp),
    "draft_only": lambda method, context: Baseline(context.warp, "draft"),
    "speculative": lambda method, context: _lossless(method, context, _PROPOSERS["draft"](method, context)),
    "lookup": lambda method, context: _lossless(method, context, _PROPOSERS["lookup"](method, context)),
    "suffix": lambda method, context: _lossless(method, context, _PROPOSERS["suffix"](method, context)),
    "chained": lambda method, context: _lossless(
        method, context, InTurn({name: _PROPOSERS[name](method, context) for name in method.proposers.split(",")})
    ),
    "autojudge": lambda method, context: _chain(method, context, _judged(method, context)),
    "topk": lambda method, context: _chain(method, context, _topk(method, context)),
    "typical": lambda method, context: _chain(method, context, _typical(method, context)),
    "entropy": lambda method, context: _chain(method, context, _entropy(method, context)),
    "fly": _fly,
    "fuzzy": _fuzzy,
    "specexec": _specexec,
    "autojudge_tree": lambda method, context: _specexec(method, context, _judged(method, context)),
    "topk_tree": lambda method, context: _specexec(method, context, _topk(method, context)),
    "typical_tree": lambda method, context: _specexec(method, context, _typical(method, context)),
    "entropy_tree": lambda method, context: _specexec(method, context, _entropy(method, context)),
}


def effective_threshold(method: MethodConfig, judge: Judge | None) -> float | None:
    """Return the threshold for the judge's probabilities: the setting's, else the judge's own, or None if unknown.

    At 0 no mismatch is accepted: the method is the lossless chain.
    """
    if method.threshold is not None:
        return method.threshold
    return None if judge is None else judge.facts.threshold


def is_lossless(method: MethodConfig, warp: Warp, judge: Judge | None = None) -> bool:
    """True if the output has the target's distribution, also for a lossy method whose setting makes it lossless."""
    return spec(method.method).lossless(method, warp, effective_threshold(method, judge))


def roles_of(method: MethodConfig) -> set[Role]:
    """Return the models that a method uses, before any is loaded."""
    return set(models_of(method))


def main_role(method: MethodConfig) -> Role:
    """Return the model whose output a method emits: the target, or the draft where it decodes alone."""
    return "target" if "target" in spec(method.method).models else "draft"


def decoder_for(method: MethodConfig, context: BuildContext) -> Decoder:
    """Build the decoder of a method's settings, here or by the package that provides the method."""
    build = BUILDERS.get(method.method) or installed()[method.method].build
    decoder: Decoder = build(method, context)
    return decoder
