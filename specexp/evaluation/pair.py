"""Loads what an experiment decodes with: tokenizers first, then only the models its methods ask."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from specexp.config import Experiment
from specexp.decoding.asks import Role
from specexp.lm.model import Model
from specexp.lm.runtime import ModelConfig, check_vocabulary, shared_vocabulary


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

    configs: dict[Role, ModelConfig] = {"target": experiment.target, "draft": experiment.draft}
    tokenizer = hf.load_tokenizer(experiment.target)
    other = hf.load_tokenizer(experiment.draft).get_vocab() if "draft" in roles else None
    known = shared_vocabulary(tokenizer.get_vocab(), other)
    check_vocabulary(known, {configs[role].model: hf.vocabulary_size(configs[role]) for role in roles})
    models = {role: hf.load_model(configs[role], known) for role in configs if role in roles}
    return Pair(tokenizer, models, models["target" if "target" in roles else "draft"].eos_ids)
