"""What is recommended, without what only this package needs: models, how drafts are made, and sampling."""

from __future__ import annotations

from dataclasses import dataclass

from specexp.config import Experiment, MethodConfig
from specexp.config.models import STORED
from specexp.lm.hf.source import hub_place, resolve
from specexp.lm.runtime import SAME, ModelConfig
from specexp.method_specs import models_of, spec

PLAIN, MODEL, LAYERS, LOOKUP, SUFFIX = "plain", "model", "layers", "lookup", "suffix"  # kinds of drafts, beside heads


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One setting of a method, with the models and the sampling that it was measured or certified with."""

    target: ModelConfig
    draft: ModelConfig | None  # None where the method asks no draft
    method: MethodConfig
    lossless: bool
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 0
    vocabulary: str = SAME  # how the draft's tokens became the target's
    fixed_gamma: int = 0  # of gamma auto: the length for engines that do not adapt it; 0 where none was predicted
    toy: bool = False

    @property
    def drafter(self) -> str:
        """What drafts: nothing, a model, layers or a head of the target, prompt lookup or suffix decoding. Of proposers
        in turn it is the draft if it has a turn, else the first."""
        if not spec(self.method.method).drafts:
            return PLAIN
        if self.draft is not None:
            return self.draft.head or (LAYERS if self.draft.layers else MODEL)
        return self.turns[0]

    @property
    def turns(self) -> tuple[str, ...]:
        """Proposers in the order of their turns; one where none take turns."""
        if self.method.proposers:
            return tuple(self.method.proposers.split(","))
        return (self.method.method if self.draft is None else "draft",)

    @property
    def others(self) -> tuple[str, ...]:
        """Proposers that have a turn beside `drafter`."""
        main = "draft" if self.draft is not None else self.turns[0]
        return tuple(name for name in self.turns if name != main)

    @property
    def gamma(self) -> int:
        """Tokens of a draft that an engine is told; 0 where only an adapted length was measured."""
        if self.method.tree is not None:
            return self.method.tree.max_depth
        return self.fixed_gamma if self.method.auto_gamma else self.method.gamma

    @property
    def samples_drafts(self) -> bool:
        """True if drafted tokens are drawn from the draft's distribution; else they are its likeliest."""
        has_probabilities = self.draft is not None and self.method.tree is None
        return has_probabilities and self.temperature > 0 and self.method.draft_temperature != 0


def of(
    experiment: Experiment, method: MethodConfig, lossless: bool, vocabulary: str = SAME, fixed_gamma: int = 0
) -> Recommendation:
    """The recommendation of one of an experiment's methods; `vocabulary` is the loaded pair's."""
    return Recommendation(
        experiment.target, experiment.draft if "draft" in models_of(method) else None, method, lossless,
        experiment.temperature, experiment.top_k, experiment.top_p, experiment.seed, experiment.max_new_tokens,
        vocabulary, fixed_gamma, experiment.toy is not None,
    )  # fmt: skip


def place_of(model: ModelConfig) -> tuple[str, str]:
    """The folder or hub id of a model, or of the head that a draft is, and its revision ("": the newest)."""
    named = model.eagle3 or model.dflash
    if not named:
        return resolve(model.model), model.revision
    if named.startswith(STORED):
        return named, ""
    place, revision = hub_place(named)
    return place, revision or ""
