"""Loads what an experiment decodes with: tokenizers first, then only the models its methods ask."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from specexp.config import Experiment
from specexp.decoding.asks import Role
from specexp.errors import ModelError
from specexp.lm.model import Model


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenizer and the models behind their roles. `eos_ids` are the target's stopping tokens."""

    tokenizer: Any
    models: Mapping[Role, Model]
    eos_ids: tuple[int, ...]

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, with whatever the tokenizer puts before it."""
        return [int(i) for i in self.tokenizer(prompt)["input_ids"]]

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def load_pair(experiment: Experiment, roles: Set[Role]) -> Pair:
    """Load the models of these roles. Raises ModelError before any weights when the tokenizers do not agree."""
    from specexp.lm import hf  # torch and transformers, for those who decode

    tokenizer = hf.load_tokenizer(experiment.target.model)
    if "draft" in roles:
        hf.check_same_tokenizer(tokenizer, hf.load_tokenizer(experiment.draft.model))
    configs = {"target": experiment.target, "draft": experiment.draft}
    models: dict[Role, hf.HFModel] = {}
    for role in ("target", "draft"):
        if role in roles:
            config = configs[role]
            models[role] = hf.load_model(config.model, config.dtype, config.device)
            check_ids(tokenizer, config.model, models[role])
    sizes = {role: model.vocab_size for role, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise ModelError(
            f"target and draft score different vocabularies: {sizes}; choose a draft of the target's family."
        )
    return Pair(tokenizer, models, models["target" if "target" in roles else "draft"].eos_ids)


def check_ids(tokenizer: Any, name: str, model: Model) -> None:
    """Refuse a model that does not know every id its tokenizer may give."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= model.vocab_size:
        raise ModelError(
            f"the tokenizer gives ids up to {highest}, but model '{name}' has {model.vocab_size} tokens;"
            " use the tokenizer it was trained with."
        )
