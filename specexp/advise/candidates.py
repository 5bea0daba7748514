"""The settings that advice weighs, their kinds, and which of them run before anything is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specexp import config
from specexp.config import MAX_NGRAM, Experiment
from specexp.config.experiment import LATER
from specexp.errors import ConfigError
from specexp.evaluation.preparation import PreparedMethod
from specexp.methods import roles_of

PLAIN = "baseline"
WEIGHED = ("speculative", "lookup", "specexec", "autojudge")  # methods that advice can predict

# The most settings of a method that run, to measure a round's overhead beyond its calls and to count a tree's rounds.
PROBED = {"speculative": 3, "lookup": 2, "autojudge": 2, "specexec": 5}
PROBED_STOPPING = 2  # for each probability below which a draft stops early


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting that may be recommended. `kind` is its method with all that distinguishes it except the draft length
    or the budget: the threshold of a lossy one, what ends a draft early, how many tokens are looked up."""

    setting: PreparedMethod

    @property
    def label(self) -> str:
        return self.setting.config.label

    @property
    def method(self) -> str:
        return self.setting.config.method

    @property
    def kind(self) -> str:
        config, said = self.setting.config, [self.method]
        if not self.lossless:
            said.append("its own threshold" if config.threshold is None else f"threshold {config.threshold:g}")
        if self.method == "lookup" and config.max_ngram != MAX_NGRAM:
            said.append(f"max_ngram {config.max_ngram}")
        if self.stops:
            said.append(f"stops below {config.min_draft_probability:g}")
        return ", ".join(said)

    @property
    def stops(self) -> bool:
        """True if a draft may end before gamma tokens, because the draft model is unsure of one."""
        return self.setting.config.min_draft_probability > 0

    @property
    def rounds_like(self) -> str:
        """Names the candidates whose rounds have the same overhead beyond their calls: those of a method; drafts that
        stop early are separate, since they are made step by step."""
        return f"{self.method}, stopping early" if self.stops else self.method

    @property
    def drafts(self) -> bool:
        """True if it needs a draft model."""
        return "draft" in self.setting.decoder.models

    @property
    def size(self) -> int:
        """The draft length, or the budget of a tree."""
        tree = self.setting.config.tree
        return tree.tree_budget if tree else self.setting.config.gamma

    @property
    def lossless(self) -> bool:
        return self.setting.lossless


def validated(experiment: Experiment, with_trees: bool, with_draft: bool = True) -> Experiment:
    """The experiment with plain decoding and the methods that advice weighs; ConfigError for what it cannot predict.

    Without a draft model only prompt lookup remains.
    """
    faults = []
    known = (PLAIN, *WEIGHED)
    if others := sorted({m.method for m in experiment.methods} - set(known)):
        faults.append(f"methods has {', '.join(others)}; advice weighs {', '.join(WEIGHED)}: leave out the others.")
    for name in ("rule", "draft_temperature", "min_match"):
        if unlike := [m.label for m in experiment.methods if getattr(m, name) != LATER[name]]:
            faults.append(f"{name} is given ({', '.join(unlike)}); advice does not predict it: leave it out.")
    if adapting := [m.label for m in experiment.methods if m.auto_gamma]:
        faults.append(f"gamma is auto ({', '.join(adapting)}); advice weighs fixed lengths: give numbers.")
    if experiment.batch > 1:
        faults.append(f"batch is {experiment.batch}, but advice is for one prompt at a time; leave it out.")
    methods = [m for m in experiment.methods if m.method in WEIGHED and (with_trees or not m.tree)]
    if not with_draft:
        methods = [m for m in methods if "draft" not in roles_of(m)]
    if not methods and not faults:
        left = "give gamma or tree_budget" if with_draft else "without a draft model only lookup is weighed: add it"
        faults.append(f"no candidate is left; {left}.")
    if faults:
        raise ConfigError(faults)
    plain = config.adjusted(experiment, {"methods": PLAIN}).methods
    return replace(experiment, methods=(*plain, *methods))


def by_kind(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """The candidates of each kind, in order of size."""
    result: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: c.size):
        result.setdefault(candidate.kind, []).append(candidate)
    return result


def to_probe(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The ends, and some between, of each method's lengths or budgets. One threshold or n-gram represents all, but
    every probability below which drafts stop is run: it decides how far they go where nothing else predicts it."""
    result: list[Candidate] = []
    for method, most in PROBED.items():
        kinds = list(by_kind([c for c in candidates if c.method == method and not c.stops]).values())
        if kinds:
            result += spread(kinds[len(kinds) // 2], most)
        for same_kind in by_kind([c for c in candidates if c.method == method and c.stops]).values():
            result += spread(same_kind, PROBED_STOPPING)
    return result


def spread(items: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most `most` of them, evenly spaced, both ends included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
