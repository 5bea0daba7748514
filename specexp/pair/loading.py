"""Loads what an experiment decodes with: tokenizers first, then only the models its methods ask."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from os.path import commonprefix
from types import ModuleType
from typing import Any, Protocol

from specexp.config import TREES, Experiment
from specexp.decoding.protocol import Role
from specexp.errors import ModelError
from specexp.lm.model import Model
from specexp.lm.runtime import ToyConfig, check_vocabulary, shared_vocabulary
from specexp.lm.toy import ToyModel
from specexp.pair import chat_template
from specexp.tasks.defaults import DEFAULTS
from specexp.tasks.example import Message

TOY_CONTEXT = 512
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What decoders write for bytes that make no character yet; and beginnings of what transformers' tidying of blanks joins
# to the word before (" .", " ' ", " n't", " 've", ...).
_UNSETTLED = re.compile(r"(?:\ufffd+| (?:n'?|'[vr]?)?)\Z")


class Text(Protocol):
    """From messages to token ids and back."""

    def encode(self, messages: Sequence[Message]) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def settled(self, ids: Sequence[int]) -> str:
        """The beginning of what `ids` decode to that no later token changes."""
        ...

    def longest(self) -> int:
        """Bytes of the longest text that one token may stand for, or more."""
        ...

    def piece(self, token: int) -> str:
        """The name of a token in the vocabulary, which is not what it reads as."""
        ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class TokenizerText:
    """A transformers tokenizer. With `chat`, messages are put into its own template; else they are joined plainly.

    `setting` is what was asked for, and `system` what the template says where there is no system message.
    """

    tokenizer: Any
    chat: bool
    setting: str = ""
    system: str = ""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, with what the tokenizer or the template puts before it."""
        if not self.chat:
            return self._plain_ids(joined(messages))
        return chat_template.ids_of(self.tokenizer, chat_template.render(self.tokenizer, messages))

    def _plain_ids(self, text: str) -> list[int]:
        """Token ids with what the tokenizer adds; a text that begins with the BOS already is not given another."""
        ids, bos = [int(i) for i in self.tokenizer(text)["input_ids"]], self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            own = [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
            return ids[1:] if ids[1 : len(own) + 1] == own else ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def settled(self, ids: Sequence[int]) -> str:
        """Without bytes that make no character yet, and without blanks that a tokenizer may still tidy up.

        Bytes that are tokens of their own (`<0xE2>`) are decoded together: a broken one breaks all that it follows
        without another token between.
        """
        end = len(ids)
        while end and (_BYTE.fullmatch(self.piece(ids[end - 1])) or not self.decode([ids[end - 1]])):
            end -= 1
        found = self.decode(ids)
        if end < len(ids):
            found = commonprefix([found, self.decode(ids[:end])])  # noqa: RUF071 (of texts, not of paths)
        return _UNSETTLED.sub("", found)

    def longest(self) -> int:
        return max(len(token.encode("utf-8", "surrogatepass")) for token in self.tokenizer.get_vocab())

    def piece(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token) or f"<{token}>")

    def facts(self) -> dict[str, Any]:
        template = chat_template.template_of(self.tokenizer) if self.chat else ""
        return {
            "class": type(self.tokenizer).__name__,
            "vocabulary": vocabulary_hash(self.tokenizer.get_vocab()),
            "chat_template": hashlib.sha256(template.encode()).hexdigest() if template else None,
            "chat_template_setting": self.setting,
            "system_prompt": self.system,
        }


@dataclass(frozen=True, slots=True)
class ToyText:
    """Characters by code point, modulo the vocabulary; ids read as numbers. Id 0 ends a text and begins none."""

    vocab_size: int

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return [1 + ord(c) % (self.vocab_size - 1) for c in joined(messages)]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids)

    def settled(self, ids: Sequence[int]) -> str:
        return self.decode(ids)

    def longest(self) -> int:
        return 4  # a character

    def piece(self, token: int) -> str:
        return str(token)

    def facts(self) -> dict[str, Any]:
        return {"class": "ToyText", "vocabulary": str(self.vocab_size), "chat_template": None}


def joined(messages: Sequence[Message]) -> str:
    """A single message as it stands; several, each with an empty line behind it, so that an answer may follow."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "".join(message["content"].rstrip() + "\n\n" for message in messages)


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of a tokenizer's map from tokens to ids."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Pair:
    """The models behind their roles and what turns text into their ids. `eos_ids` are the target's stopping tokens.

    `notes` are what a person should be told of how prompts are made.
    """

    text: Text
    models: Mapping[Role, Model]
    eos_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()


def contexts(experiment: Experiment, roles: Set[Role]) -> dict[Role, int]:
    """The most positions of each model's sequences, by its config: nothing is loaded. Raises ModelError."""
    if experiment.toy is not None:
        return dict.fromkeys(roles, TOY_CONTEXT)
    loading = _loading(experiment)
    return {role: loading.context_size(experiment.models[role]) for role in roles}


def _loading(experiment: Experiment) -> ModuleType:
    try:
        from specexp.lm.hf import loading
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model '{experiment.target.model}' needs the package '{error.name}', which is not installed;"
            f" pip install {error.name}, or try the numpy pair (experiment toy_quick)."
        ) from error
    return loading


def load_pair(experiment: Experiment, roles: Set[Role], own_prompts: bool = False) -> Pair:
    """Load the models of these roles; with `own_prompts`, for a person's own prompts and not the experiment's task.

    Raises ModelError before any weights when the tokenizers do not agree.
    """
    if experiment.toy is not None:
        return _toy_pair(experiment.toy, roles)
    loading = _loading(experiment)
    configs = experiment.models
    # Before the tokenizers, whose loader reads configs too, and takes a broken one for a tokenizer's fault.
    sizes = {configs[role].model: loading.vocabulary_size(configs[role]) for role in roles}
    tokenizer = loading.load_tokenizer(experiment.target)
    text, notes = _text(experiment, tokenizer, not own_prompts and DEFAULTS[experiment.task].completions)
    other = loading.load_tokenizer(experiment.draft).get_vocab() if "draft" in roles else None
    known = shared_vocabulary(tokenizer.get_vocab(), other)
    check_vocabulary(known, sizes)
    trees = any(method.method in TREES for method in experiment.methods)
    for role in roles:
        loading.check_decodable(configs[role], trees)
    # The ids that may be emitted are the target's affair, for both models and whichever of them is loaded.
    suppressed = loading.suppressed_ids(experiment.target)
    models = {role: loading.load_model(configs[role], known, suppressed) for role in configs if role in roles}
    for model in models.values():
        model.check_cache()
    main = models["target" if "target" in roles else "draft"]
    return Pair(text, models, main.eos_ids, (*notes, *main.notes))


def _text(experiment: Experiment, tokenizer: Any, completions: bool) -> tuple[TokenizerText, tuple[str, ...]]:
    """What makes prompts, and notes on it."""
    target = experiment.target
    used = chat_template.is_used(target.chat_template, tokenizer, completions, target.tokenizer or target.model)
    system = chat_template.system_text(tokenizer) if used else ""
    why_not = f"the prompts of task '{experiment.task}' are completions"
    note = chat_template.note(target.chat_template, tokenizer, used, system, why_not)
    return TokenizerText(tokenizer, used, target.chat_template, system), (note,) if note else ()


def identity(pair: Pair, experiment: Experiment) -> dict[str, Any]:
    """What labels and judges are made for, and what a pair must agree on to use them."""
    return {
        **{role: model.facts()["fingerprint"] for role, model in pair.models.items()},
        "tokenizer": pair.text.facts()["vocabulary"],
        "chat_template": pair.text.facts()["chat_template"] or "",
        "target_name": experiment.target.model,
        "draft_name": experiment.draft.model,
        "target_revision": experiment.target.revision,
        "draft_revision": experiment.draft.revision,
        "dtype": experiment.target.dtype,
        "quantization": {"target": experiment.target.quantization, "draft": experiment.draft.quantization},
    }


def hidden_sizes(pair: Pair) -> dict[str, int]:
    """Width of each model's hidden states, which a judge reads."""
    return {role: model.facts()["hidden_size"] for role, model in pair.models.items()}


def _toy_pair(config: ToyConfig, roles: Set[Role]) -> Pair:
    noise: dict[Role, float] = {"target": 0.0, "draft": config.draft_noise}
    models: dict[Role, Model] = {
        role: ToyModel(config.vocab_size, config.seed, noise[role], context=TOY_CONTEXT)
        for role in noise
        if role in roles
    }
    return Pair(ToyText(config.vocab_size), models, (0,))
