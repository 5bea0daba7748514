"""The subject and the result of every check: the method together with plain decoding, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from specexp.config import MethodConfig
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.evaluation.equality import Draws
from specexp.evaluation.preparation import Prepared, PreparedMethod, arithmetic_of
from specexp.judge.judge import Judge
from specexp.lm import out_of_memory
from specexp.lm.runtime import INVARIANT
from specexp.method_specs import spec
from specexp.methods import effective_threshold, is_lossless

PASSED, FAILED, INCONCLUSIVE, REPORTED, SKIPPED = "passed", "failed", "inconclusive", "reported", "does not apply"
# What a decoder with a bug may raise; errors of the device are not among them.
BREAKS = (AssertionError, ArithmeticError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Check:
    """A verdict, a sentence that explains it, and the numbers it rests on, as JSON."""

    name: str
    verdict: str
    sentence: str
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


# What rules without training accept beside the lossless one, named before the value of their dial.
_ACCEPTS = {
    "typical": "drafted tokens that are likely enough for the target's entropy, by accept_epsilon",
    "entropy": "drafted tokens where the target's entropy is above accept_entropy",
    "fly": "mismatches where the target's entropy is above accept_entropy and it then agrees with the draft",
    "fuzzy": "drafted tokens where the distributions of draft and target are closer than accept_distance",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """The method that is examined and plain decoding, with everything loaded."""

    prepared: Prepared
    plain: PreparedMethod
    setting: PreparedMethod

    @property
    def method(self) -> MethodConfig:
        return self.setting.config

    @property
    def warp(self) -> Warp:
        experiment = self.prepared.experiment
        return experiment.warp

    @property
    def certain(self) -> bool:
        """True if every distribution is one-hot, so that nothing is drawn at random."""
        return self.warp.greedy or self.warp.top_k == 1

    @property
    def invariant(self) -> bool:
        """True if a token's logits are to have the same bits whatever is fed with it."""
        return self.prepared.experiment.numerics == INVARIANT

    @property
    def draws(self) -> Draws:
        experiment = self.prepared.experiment
        return Draws(self.warp, lambda prompt_id: rng_for(experiment.temperature, experiment.seed, prompt_id))

    @property
    def judge(self) -> Judge | None:
        return self.prepared.judges.get(self.method.judge)

    @property
    def threshold(self) -> float:
        """The value that the judge's probabilities are compared with; 0 without a judge."""
        return effective_threshold(self.method, self.judge) or 0.0

    @property
    def arithmetic(self) -> str:
        """The dtype that the target computes in."""
        return arithmetic_of(self.prepared.experiment)

    def prompts(self) -> dict[str, list[int]]:
        """Token ids of every prompt, by its name."""
        prepared = self.prepared
        return {x.prompt_id: ids for x, ids in zip(prepared.examples, prepared.prompts, strict=True)}

    def word(self, token: int | None) -> str:
        """A token as readable text."""
        return "the end" if token is None else repr(self.decode([token]))

    def decode(self, ids: Sequence[int]) -> str:
        text = self.prepared.pair.text.decode(ids)
        return text or " ".join(f"<{i}>" for i in ids)  # special tokens have no text

    @property
    def lossy(self) -> str:
        """Why this method's output is not the target's by design; "" for a lossless method."""
        method = self.method
        if is_lossless(method, self.warp, self.judge):
            return ""
        if not spec(method.method).verifies:
            return f"{method.method} decodes with the draft model alone"
        rule = method.method.removesuffix("_tree")
        if rule == "topk":
            likeliest = "likeliest token" if method.accept_k == 1 else f"{method.accept_k} likeliest tokens"
            margin = "" if method.accept_margin is None else f" and less than {method.accept_margin:g} below the best"
            return f"Top-K also accepts a drafted token among the target's {likeliest}{margin}"
        if method.judge:
            return f"AutoJudge also accepts mismatches that its judge gives a probability below {self.threshold:g}"
        if rule in _ACCEPTS:
            return f"its rule also accepts {_ACCEPTS[rule]} ({method.dial:g})"
        return f"{method.method} declares itself lossy at these settings"


@contextmanager
def in_memory(subject: Subject) -> Iterator[None]:
    """Raise ModelError if memory runs out."""
    lower = "batch (samples are drawn so many at a time), max_new_tokens, gamma or tree_budget"
    with out_of_memory.translate_oom(subject.method.label, lower, subject.prepared.experiment.models):
        yield


def count(number: int, what: str) -> str:
    """`1 prompt`, `1,204 tokens`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
