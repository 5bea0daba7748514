"""A pair of models whose weights another process has: what is said of them here is what that process found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, cast

from specexp.config import Experiment
from specexp.decoding.protocol import Role
from specexp.lm.model import Model
from specexp.pair.loading import Pair, PromptCheck, contexts
from specexp.pair.tokenization import Text

Description = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """The facts about a model that a worker has loaded. It cannot be called."""

    description: Mapping[str, Any]
    context: int

    def facts(self) -> dict[str, Any]:
        return dict(self.description)

    def check_trees(self) -> None:
        """Nothing: the worker has checked it."""


def describe(pair: Pair, experiment: Experiment) -> Description:
    """Return what `described` takes, which can be pickled."""
    return {
        "text": pair.text, "eos_ids": pair.eos_ids, "notes": pair.notes, "vocabulary": pair.vocabulary,
        "contexts": contexts(experiment, set(pair.models)),
        "models": {role: (model.facts(), model.context) for role, model in pair.models.items()},
    }  # fmt: skip


def described(description: Description) -> Callable[..., Pair]:
    """Return a function with the arguments of `load_pair`, which loads nothing."""

    def load(
        experiment: Experiment, roles: Set[Role], own_prompts: bool = False,
        check: PromptCheck = lambda text, contexts: None, same_tokens: bool = False,
    ) -> Pair:  # fmt: skip
        text: Text = description["text"]
        check(text, description["contexts"])
        models = {role: cast(Model, DescribedModel(*each)) for role, each in description["models"].items()}
        return Pair(text, models, description["eos_ids"], description["notes"], description["vocabulary"])

    return load
