"""The settings that advice weighs, their kinds, and which of them run before anything is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specexp import config
from specexp.config import MAX_NGRAM, Experiment
from specexp.config.experiment import SUFFIX_FACTOR, SUFFIX_MIN_PROBABILITY
from specexp.decoding.chain import Chain, DraftModel, InTurn
from specexp.errors import ConfigError
from specexp.evaluation.preparation import PreparedMethod
from specexp.methods import roles_of

PLAIN = "baseline"
_SUFFIX = {"suffix_factor": SUFFIX_FACTOR, "suffix_min_probability": SUFFIX_MIN_PROBABILITY}
WEIGHED = ("speculative", "lookup", "suffix", "chained", "specexec", "autojudge")  # methods that advice can predict

# The most settings of a method that run, to measure a round's overhead beyond its calls and to count a tree's rounds.
PROBED = {"speculative": 3, "lookup": 2, "suffix": 2, "chained": 2, "autojudge": 2, "specexec": 5}
PROBED_STOPPING = 2  # for each probability below which a draft stops early
PROBED_COUNTED = 5  # of each kind whose rounds no output tells


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
        said += self._accepting
        said += [f"proposers {config.proposers}"] if config.proposers else []
        said += [f"max_ngram {config.max_ngram}"] if config.max_ngram not in (0, MAX_NGRAM) else []
        for name in ("suffix_factor", "suffix_min_probability"):
            if config.suffix_factor and getattr(config, name) != _SUFFIX[name]:
                said.append(f"{name} {getattr(config, name):g}")
        said += [f"min_match {config.min_match}"] if config.min_match > 1 else []
        said += ["verified as a block"] if config.rule == "block" else []
        said += ["adapting"] if self.adapts else []
        said += [f"stops below {config.min_draft_probability:g}"] if config.min_draft_probability else []
        return ", ".join(said)

    @property
    def _accepting(self) -> list[str]:
        """What decides which drafted tokens are accepted, besides a block."""
        config, said = self.setting.config, []
        if not self.lossless:
            said.append("its own threshold" if config.threshold is None else f"threshold {config.threshold:g}")
        if config.draft_temperature is not None:
            said.append(f"drafts at temperature {config.draft_temperature:g}")
        return said

    @property
    def accepts_like(self) -> str:
        """Names the chains that accept alike along an output; draft lengths, and where drafts stop, do not matter."""
        said = self._accepting
        return ", ".join(said if self.lossless else [self.method, *said])

    @property
    def adapts(self) -> bool:
        """True if a draft ends where no longer one pays."""
        return self.setting.config.auto_gamma

    @property
    def stops(self) -> bool:
        """True if a draft of a fixed length may end before it, because the draft model is unsure of a token."""
        return self.setting.config.min_draft_probability > 0 and not self.adapts

    @property
    def counted(self) -> bool:
        """True if its rounds are counted in runs: an output does not tell those of trees, which grow off it, nor those
        of drafts that write text, which keep what they wrote from round to round."""
        return self.setting.facts.grows_tree or self.writes_text

    @property
    def predicted(self) -> bool:
        """True if it is a chain of a draft whose rounds plain decoding's outputs tell."""
        return self.drafts and self.lossless and not self.counted

    @property
    def writes_text(self) -> bool:
        """True if its draft has another tokenizer and writes text."""
        decoder = self.setting.decoder
        return self.drafts and isinstance(decoder, Chain) and decoder.verification == "match"

    @property
    def rounds_like(self) -> str:
        """Names the candidates whose rounds have the same overhead beyond their calls: those of a method; drafts that
        stop early or adapt are separate, since they are made step by step, and so are blocks."""
        said = [self.method]
        said += ["verified as a block"] if not self.setting.by_token and not self.writes_text else []
        said += ["adapting"] if self.adapts else ["stopping early"] if self.stops else []
        return ", ".join(said)

    @property
    def drafts(self) -> bool:
        """True if it needs a draft model."""
        return "draft" in self.setting.decoder.models

    @property
    def draft(self) -> DraftModel:
        """The proposer of a chain that asks the draft model."""
        decoder = self.setting.decoder
        assert isinstance(decoder, Chain), f"{self.label} is no chain"
        proposer = decoder.proposer
        turns = proposer.proposers.values() if isinstance(proposer, InTurn) else [proposer]
        return next(each for each in turns if isinstance(each, DraftModel))

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

    Without a draft model, only methods that need none remain.
    """
    faults = []
    known = (PLAIN, *WEIGHED)
    if others := sorted({m.method for m in experiment.methods} - set(known)):
        faults.append(f"methods has {', '.join(others)}; advice weighs {', '.join(WEIGHED)}: leave out the others.")
    if with_memory := [m.label for m in experiment.methods if m.suffix_memory == "run"]:
        faults.append(
            f"suffix_memory is run ({', '.join(with_memory)}), but advice decodes each prompt by itself; leave it out."
        )
    if experiment.batch > 1:
        faults.append(f"batch is {experiment.batch}, but advice is for one prompt at a time; leave it out.")
    methods = [m for m in experiment.methods if m.method in WEIGHED and (with_trees or not m.tree)]
    if not with_draft:
        methods = [m for m in methods if "draft" not in roles_of(m)]
    if not methods and not faults:
        left = (
            "give gamma or tree_budget"
            if with_draft
            else "without a draft model lookup and suffix are weighed: add one"
        )
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
    """The ends, and some between, of each method's lengths or budgets. One threshold or n-gram represents all whose
    rounds have the same overhead, but every probability below which drafts stop is run: it decides how far they go
    where nothing else predicts it; and so is every kind whose rounds are counted."""
    result: list[Candidate] = []
    for method, most in PROBED.items():
        like: dict[str, list[Candidate]] = {}
        each_kind: list[Candidate] = []
        for c in (c for c in candidates if c.method == method):
            if c.counted or c.stops:
                each_kind.append(c)
            else:
                like.setdefault(c.rounds_like, []).append(c)
        for group in like.values():
            kinds = list(by_kind(group).values())
            result += spread(kinds[len(kinds) // 2], most)
        for same_kind in by_kind(each_kind).values():
            result += spread(same_kind, PROBED_COUNTED if same_kind[0].counted else PROBED_STOPPING)
    return result


def spread(items: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most `most` of them, evenly spaced, both ends included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
