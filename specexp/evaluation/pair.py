"""Loads what an experiment decodes with: tokenizers first, then only the models its methods ask."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from specexp.config import Experiment
from specexp.decoding.asks import Role
from specexp.errors import ModelError
from specexp.lm.model import Model
from specexp.lm.runtime import ModelConfig, check_vocabulary, shared_vocabulary


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenizer and the models behind their roles. `eos_ids` are the target's stopping tokens."""

    tokenizer: Any
    models: Mapping[Role, Model]
    eos_ids: tuple[int, ...]
    chat: bool = False

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt: in the chat template if one is used, else with what the tokenizer puts before it."""
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        return [int(i) for i in self.tokenizer(prompt)["input_ids"]]

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def load_pair(experiment: Experiment, roles: Set[Role]) -> Pair:
    """Load the models of these roles. Raises ModelError before any weights when the tokenizers do not agree."""
    from specexp.lm import hf  # torch and transformers, for those who decode

    configs: dict[Role, ModelConfig] = {"target": experiment.target, "draft": experiment.draft}
    tokenizer = hf.load_tokenizer(experiment.target)
    chat = experiment.target.chat_template == "own"
    if chat and not tokenizer.chat_template:
        name = experiment.target.tokenizer or experiment.target.model
        raise ModelError(f"chat_template is own, but the tokenizer of '{name}' has none; set chat_template to none.")
    other = hf.load_tokenizer(experiment.draft).get_vocab() if "draft" in roles else None
    known = shared_vocabulary(tokenizer.get_vocab(), other)
    check_vocabulary(known, {configs[role].model: hf.vocabulary_size(configs[role]) for role in roles})
    models = {role: hf.load_model(configs[role], known) for role in configs if role in roles}
    return Pair(tokenizer, models, models["target" if "target" in roles else "draft"].eos_ids, chat)
