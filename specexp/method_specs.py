"""Facts about every method: which models it uses, which settings it takes, what it drafts, and when it is lossless.

The methods are those of this package and those of installed packages, which name a `Method` in the entry-point group
`specexp.methods`. Decoders are built elsewhere: for this package's methods in `specexp.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

from specexp.decoding.protocol import Role
from specexp.decoding.rules import Warp
from specexp.engines.served_methods import SERVED
from specexp.errors import ConfigError, unknown
from specexp.lm.runtime import INTERSECTION, SAME, VOCABULARIES

GROUP = "specexp.methods"  # the entry-point group
BOTH: frozenset[Role] = frozenset({"target", "draft"})
TARGET: frozenset[Role] = frozenset({"target"})
DRAFT: frozenset[Role] = frozenset({"draft"})
CHAIN = ("gamma", "bonus", "min_draft_probability")  # the settings of every chain of a draft model
OWN_CHAIN = (*CHAIN, "max_gamma", "draft_temperature")  # of this package: what others build chains with stays as it is
SUFFIX = ("suffix_factor", "suffix_min_probability", "suffix_memory")
# Of proposers that take turns: the settings that are theirs.
OF_PROPOSERS: Mapping[str, tuple[str, ...]] = {
    "suffix": (*SUFFIX, "min_match"),
    "lookup": ("max_ngram", "min_match"),
    "draft": ("min_draft_probability", "draft_temperature"),
}
TREE = ("gamma", "tree_budget", "max_depth", "parallel_branches", "branch_width", "branch_prune_threshold",
        "min_log_prob")  # fmt: skip


class MethodSettings(Protocol):
    """The part of a method's settings that is needed here; `MethodConfig` implements it."""

    @property
    def method(self) -> str: ...

    @property
    def accept_k(self) -> int: ...

    @property
    def rule_is_off(self) -> bool: ...

    @property
    def proposers(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def rule(self) -> str: ...

    @property
    def draft_temperature(self) -> float | None: ...

    @property
    def min_draft_probability(self) -> float: ...

    @property
    def auto_gamma(self) -> bool: ...


# True if the output has the target's distribution, given the settings, the warp, and the threshold of a judge. The
# threshold is None if it is the judge's own and the judge is not loaded.
LosslessRule = Callable[[MethodSettings, Warp, float | None], bool]


def always(settings: MethodSettings, warp: Warp, threshold: float | None) -> bool:
    return True


def never(settings: MethodSettings, warp: Warp, threshold: float | None) -> bool:
    return False


def _nothing_is_accepted_anyway(settings: MethodSettings, warp: Warp, threshold: float | None) -> bool:
    return threshold == 0


def _rule_is_off(settings: MethodSettings, warp: Warp, threshold: float | None) -> bool:
    return settings.rule_is_off or (settings.accept_k == 1 and warp.one_hot)


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """What the rest of the package needs to know about a method.

    `kind` is what a round verifies: nothing but the target's own token, a chain, or a tree. `settings` are those that
    it takes in addition to an experiment's. `presets` are those of an installed package: settings by preset name.
    """

    name: str
    summary: str  # one sentence
    kind: Literal["plain", "chain", "tree"]
    models: frozenset[Role] = BOTH
    settings: tuple[str, ...] = ()
    lossless: LosslessRule = always
    may_end_early: bool = False  # its chains may be shorter than gamma by themselves
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    vocabularies: tuple[str, ...] = (SAME,)  # how a draft's tokens may become the target's (`specexp.lm.runtime`)
    takes_heads: bool = False  # the draft may be a head on the target's hidden states
    greedy_only: bool = False  # defined at temperature 0 alone

    @property
    def grows_tree(self) -> bool:
        return self.kind == "tree"

    @property
    def drafts(self) -> bool:
        """True if tokens are proposed and verified."""
        return self.kind != "plain"

    @property
    def is_plain_decoding(self) -> bool:
        """True if it is the method that every other method is compared with."""
        return not self.drafts and self.verifies

    @property
    def verifies(self) -> bool:
        """True if the target decides which tokens are emitted."""
        return "target" in self.models


@dataclass(frozen=True, slots=True)
class Method:
    """A method of an installed package: its facts, and `build(settings: MethodConfig, context: BuildContext)`."""

    spec: MethodSpec
    build: Callable[[Any, Any], Any]


_UNTRAINED: Any = {"lossless": _rule_is_off, "vocabularies": (SAME, INTERSECTION), "takes_heads": True}
BUILT_IN = (
    MethodSpec("baseline", "Plain decoding: the target, one token a call.", "plain", TARGET),
    MethodSpec("draft_only", "The draft model alone, one token a call.", "plain", DRAFT, lossless=never),
    MethodSpec(
        "speculative", "Speculative sampling: the draft proposes a chain, the target verifies it in one call.", "chain",
        settings=(*OWN_CHAIN, "rule"), vocabularies=VOCABULARIES[1:], takes_heads=True,
    ),
    MethodSpec(
        "lookup", "Prompt lookup: the chain is what followed the last tokens where they occurred before.", "chain",
        TARGET, ("gamma", "bonus", "max_ngram", "min_match", "rule"), may_end_early=True,
    ),
    MethodSpec(
        "suffix", "Suffix decoding: the chain is what most often followed the last tokens before, as far as that is"
        " likely.", "chain", TARGET, ("gamma", "bonus", *SUFFIX, "min_match", "rule"), may_end_early=True,
    ),
    MethodSpec(
        "chained", "Suffix decoding, prompt lookup and the draft model take turns: the first with something to say.",
        "chain", settings=(*OWN_CHAIN, "proposers", "max_ngram", *SUFFIX, "min_match", "rule"), may_end_early=True,
        vocabularies=VOCABULARIES[1:], takes_heads=True,
    ),
    MethodSpec(
        "autojudge", "AutoJudge: a trained judge also accepts mismatches that do not matter.", "chain",
        settings=(*OWN_CHAIN, "judge", "threshold"), lossless=_nothing_is_accepted_anyway,
    ),
    MethodSpec(
        "topk", "Top-K: also accepts tokens among the target's K likeliest.", "chain",
        settings=(*OWN_CHAIN, "accept_k", "accept_margin"), **_UNTRAINED,
    ),
    MethodSpec(
        "typical", "Typical acceptance: also accepts tokens that are likely enough for how unsure the target is.",
        "chain", settings=(*OWN_CHAIN, "accept_epsilon", "accept_delta"), **_UNTRAINED,
    ),
    MethodSpec(
        "entropy", "Entropy gate: also accepts tokens where the target is unsure.", "chain",
        settings=(*OWN_CHAIN, "accept_entropy"), **_UNTRAINED,
    ),
    MethodSpec(
        "fly", "FLy: also accepts mismatches where the target is unsure and then agrees with the draft again.", "chain",
        settings=(*CHAIN, "max_gamma", "accept_entropy", "accept_window"), greedy_only=True, **_UNTRAINED,
    ),
    MethodSpec(
        "fuzzy", "Fuzzy acceptance: also accepts tokens where the distributions of draft and target are close.",
        "chain", settings=(*CHAIN, "max_gamma", "accept_distance", "distance"), **_UNTRAINED,
    ),
    MethodSpec(
        "specexec", "SpecExec: the draft grows a tree of likely continuations, the target scores it in one call.",
        "tree", settings=TREE, vocabularies=(SAME, INTERSECTION), takes_heads=True,
    ),
    MethodSpec(
        "autojudge_tree", "AutoJudge on SpecExec's tree: where the target's draw is no node, one whose mismatch does"
        " not matter is.", "tree", settings=(*TREE, "judge", "threshold"), lossless=_nothing_is_accepted_anyway,
    ),
    MethodSpec(
        "topk_tree", "Top-K on SpecExec's tree: where the target's draw is no node, one among its K likeliest is.",
        "tree", settings=(*TREE, "accept_k", "accept_margin"), **_UNTRAINED,
    ),
    MethodSpec(
        "typical_tree", "Typical acceptance on SpecExec's tree: where the target's draw is no node, one that is likely"
        " enough is.", "tree", settings=(*TREE, "accept_epsilon", "accept_delta"), **_UNTRAINED,
    ),
    MethodSpec(
        "entropy_tree", "Entropy gate on SpecExec's tree: where the target is unsure and its draw is no node, the"
        " draft's favourite is.", "tree", settings=(*TREE, "accept_entropy"), **_UNTRAINED,
    ),
)  # fmt: skip


@cache
def installed() -> Mapping[str, Method]:
    """Return methods of installed packages, by name. Raises ConfigError, naming the package, for an unusable one."""
    result: dict[str, Method] = {}
    taken = {spec.name for spec in BUILT_IN}
    for point in entry_points(group=GROUP):
        where = f"method '{point.name}' of package '{point.dist.name if point.dist else '?'}'"
        try:
            method = point.load()
        except Exception as error:  # code of another package may raise anything
            words = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{where} cannot be loaded: {words}; mend or uninstall it.") from error
        if not isinstance(method, Method):
            raise ConfigError(f"{where} is {type(method).__name__}; it must be a specexp.method_specs.Method.")
        if method.spec.name in taken:
            raise ConfigError(f"{where}: another method has the name '{method.spec.name}'; uninstall one of them.")
        taken.add(method.spec.name)
        result[method.spec.name] = method
    return result


def specs() -> dict[str, MethodSpec]:
    """Return every method's facts, by name."""
    return {spec.name: spec for spec in (*BUILT_IN, *(method.spec for method in installed().values()))}


def spec(name: str) -> MethodSpec:
    """Return the facts of one method. Raises ConfigError for an unknown name."""
    if name.startswith(SERVED):
        return MethodSpec(name, "A served engine, measured from outside.", "plain", frozenset(), lossless=never)
    result = _BY_NAME.get(name) or specs().get(name)
    if result is None:
        raise ConfigError(unknown("method", name, specs()))
    return result


def models_of(settings: MethodSettings) -> frozenset[Role]:
    """Return the models that a method asks with these settings: its own, less a draft that has no turn."""
    if settings.proposers and "draft" not in settings.proposers.split(","):
        return TARGET
    return spec(settings.method).models


def settings_of(method: str, proposers: str) -> tuple[str, ...]:
    """Return the settings that a method takes, without those of proposers that have no turn ("": all have one)."""
    turns = proposers.split(",") if proposers else OF_PROPOSERS.keys()
    used = {setting for name in turns for setting in OF_PROPOSERS[name]}
    unused = {setting for settings in OF_PROPOSERS.values() for setting in settings} - used
    return tuple(setting for setting in spec(method).settings if setting not in unused)


_BY_NAME = {each.name: each for each in BUILT_IN}


def takers() -> dict[str, tuple[str, ...]]:
    """Return the settings of methods, and which methods take each."""
    result: dict[str, tuple[str, ...]] = {}
    for each in specs().values():
        for setting in each.settings:
            result[setting] = (*result.get(setting, ()), each.name)
    return result
