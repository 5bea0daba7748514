"""The alternatives in transformers: `generate()`, plain, compiled, assisted, with prompt lookup, MTP layers or DFlash.

A model's own generation_config fills in omitted settings. So it is replaced for the duration of a call, and every
setting that could differ is given. Nothing here changes a model permanently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import CompileConfig
from transformers.modeling_layers import MtpModel
from transformers.utils import logging as transformers_logging

from specexp.errors import ModelError
from specexp.lm.heads.dflash import DFlashDraft
from specexp.lm.heads.mtp import MtpDraft
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.own_layers import module_of_layers
from specexp.lm.translated import Translated
from specexp.pair.loading import Pair

LOOKUP_TOKENS = 10  # transformers' own choice for prompt lookup


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to call `generate()` on the target; with `gamma`, the draft is its assistant."""

    models: Mapping[str, HFModel]
    eos_ids: Sequence[int]
    gamma: int = 0
    temperature: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: Mapping[str, Any] = field(default_factory=dict)  # of target and assistant, where they differ
    head: MtpDraft | DFlashDraft | None = None  # with `gamma`, drafts in place of an assistant model

    def settings(self, max_new_tokens: int) -> GenerationConfig:
        """All settings that could differ; the suppressed ids are those that no method here emits."""
        target = self.models["target"]
        scored = int(target.module.config.get_text_config(decoder=True).vocab_size)
        suppressed = [*target.suppressed, *range(target.vocab_size, scored)]
        sampled = self.temperature > 0
        return GenerationConfig(
            do_sample=sampled,
            temperature=self.temperature if sampled else 1.0,
            top_k=0 if sampled else 50,  # off; greedy decoding does not use it, and 50 is what causes no warning
            top_p=1.0,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self.eos_ids) or None,
            pad_token_id=self.eos_ids[0] if self.eos_ids else 0,
            suppress_tokens=suppressed or None,
            use_cache=True,
            **self.options,
            **self._of_head(),
        )

    def _of_head(self) -> dict[str, Any]:
        if not self.gamma or self.head is None:
            return {}
        return {"use_mtp": True} if isinstance(self.head, MtpDraft) else {"speculation_type": "dflash"}

    def prepare(self, ids: Sequence[int], max_new_tokens: int) -> Call:
        """Everything that does not count as the call's time."""
        target = self.models["target"]
        assisted = self.gamma and not isinstance(self.head, MtpDraft)
        more = {"assistant_model": self._assistant(), **self.tokenizers} if assisted else {}
        return Call(self, target.ids(ids)[None], self.settings(max_new_tokens), more)

    def _assistant(self) -> Any:
        """The draft's module. Where tokenizers differ and it samples, generate() replaces its embedding and head, once
        for each pair of tokenizers: that is a copy then, on the same weights."""
        if self.head is not None:
            return self.head.module
        module = self.models["draft"].module
        if not self.tokenizers or not self.temperature:
            return module
        if module not in _SAMPLING:
            count = module.config.get_text_config(decoder=True).num_hidden_layers
            _SAMPLING[module] = module_of_layers(module, range(count), self.models["draft"].name)
        return _SAMPLING[module]


_SAMPLING: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Call:
    """One call that is ready to be timed."""

    peer: Peer
    ids: torch.Tensor  # [1, N]
    settings: GenerationConfig
    more: Mapping[str, Any]

    @contextmanager
    def ready(self, seed: int) -> Iterator[None]:
        """The context of the call: the assistant drafts exactly `gamma` tokens, and draws are repeatable."""
        peer = self.peer
        device = peer.models["target"].device
        with (
            without_settings(peer.models["target"].module),
            self._drafting(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.inference_mode(),
            _quiet(),
        ):
            torch.manual_seed(seed)
            yield

    def _drafting(self) -> AbstractContextManager[None]:
        peer = self.peer
        if isinstance(peer.head, MtpDraft):
            return loaded_layers(peer.head)
        drafts = peer.gamma and peer.head is None
        return constant_schedule(self.more["assistant_model"], peer.gamma) if drafts else nullcontext()

    def run(self) -> torch.Tensor:
        """Ids[1, N + M]."""
        result: torch.Tensor = self.peer.models["target"].module.generate(
            self.ids, attention_mask=torch.ones_like(self.ids), generation_config=self.settings, **self.more
        )
        return result

    def emitted(self, sequences: torch.Tensor) -> list[int]:
        """The M new ids, on the host."""
        return [int(i) for i in sequences[0, self.ids.shape[1] :].tolist()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings about how its own assistant calls it."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def constant_schedule(assistant: Any, gamma: int) -> Iterator[None]:
    """Inside, this module drafts `gamma` tokens a round when it assists.

    `generate` reads the number from the assistant's generation_config alone, moves it from round to round unless the
    schedule is constant, and stops a draft early by a confidence threshold unless that is 0.
    """
    with without_settings(assistant):
        assistant.generation_config.num_assistant_tokens = gamma
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0
        yield


@contextmanager
def loaded_layers(head: MtpDraft) -> Iterator[None]:
    """Inside, `generate(use_mtp=True)` takes these MTP layers, where it would load them at every call."""
    before = MtpModel.__dict__["from_pretrained"]
    MtpModel.from_pretrained = lambda *args, **kwargs: head.module
    try:
        yield
    finally:
        MtpModel.from_pretrained = before


@contextmanager
def without_settings(module: Any) -> Iterator[None]:
    """Inside, this module has a generation_config that sets nothing."""
    before = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = before


def compiled() -> dict[str, Any]:
    """Options of a static cache and a compiled forward, which `generate` otherwise uses on accelerators only."""
    how = CompileConfig()
    how._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": how}


def lookup() -> dict[str, Any]:
    """Options of prompt lookup."""
    return {"prompt_lookup_num_tokens": LOOKUP_TOKENS}


def has_assistant(pair: Pair) -> bool:
    """True if `generate()` drafts as the pair's draft does: it is a model, with the target's tokens or its own, or one
    of the heads that transformers has, on a target without a recurrent state."""
    draft = pair.models.get("draft")
    if isinstance(draft, MtpDraft | DFlashDraft):
        return not getattr(draft.target.module, "_is_stateful", False)
    return isinstance(draft, HFModel | Translated)


def check_head(head: MtpDraft | DFlashDraft, gammas: Iterable[int]) -> None:
    """Raise ModelError if transformers cannot draft chains of so many tokens with this head."""
    most = head.num_layers if isinstance(head, MtpDraft) else head.block_size - 1
    if wrong := [gamma for gamma in gammas if gamma != most]:
        raise ModelError(
            f"gamma is {wrong[0]}, but transformers' generate() always drafts {most} with draft {head.name}; set gamma"
            f" to {most}, so that both draft as many."
        )


def plain_peer(pair: Pair, gammas: Iterable[int] = ()) -> Peer:
    """Transformers' `generate()` on these models, greedy; `gammas` are the lengths that it will draft."""
    models: dict[str, HFModel] = {}
    tokenizers: Mapping[str, Any] = {}
    head = None
    for role, model in pair.models.items():
        if role == "draft" and not isinstance(model, HFModel | Translated):
            if has_assistant(pair):
                assert isinstance(model, MtpDraft | DFlashDraft)
                check_head(model, gammas)
                head = model
            continue
        if isinstance(model, Translated):
            model, tokenizers = model.inner, model.translation.tokenizers
        assert isinstance(model, HFModel), "transformers decodes models of its own only"
        models[role] = model
    sizes = {model.module.config.get_text_config(decoder=True).vocab_size for model in models.values()}
    if tokenizers and len(sizes) == 1:
        raise ModelError(
            "transformers' generate() takes a draft with another tokenizer only if it scores another number of ids; use"
            " evaluate, which compares the methods without it."
        )
    assert head is None or isinstance(head, MtpDraft | DFlashDraft)
    return Peer(models, pair.eos_ids, tokenizers=tokenizers, head=head)
