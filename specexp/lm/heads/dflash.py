"""A DFlash draft: an assistant model of transformers that drafts a block of tokens in one forward.

Its config.json names the target's layers whose states it reads (`target_layer_ids`), the size of its block and the
token that stands for what is not drafted yet; embedding and output layer are the target's.

Shapes: G drafted tokens, R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import DRAFT, Rng, pick_each
from specexp.decoding.rules import UNIT_TEMPERATURE
from specexp.errors import ModelError, first_line
from specexp.lm.heads.base import HeadDraft
from specexp.lm.heads.dflash_session import DFlashSession
from specexp.lm.hf.source import hub_fault
from specexp.lm.model import Feed, one_by_one
from specexp.lm.native.draft_loop import probability
from specexp.lm.transfer import integers

FIELDS = ("block_size", "mask_token_id", "target_layer_ids")


@dataclass(slots=True, eq=False)
class DFlashDraft(HeadDraft):
    """The assistant and the target, whose sessions keep the states that it reads."""

    module: Any
    embedding: nn.Module = field(init=False)
    masks: Tensor = field(init=False)  # [B - 1]

    def __post_init__(self) -> None:
        self.embedding = _embedding(self.target.module)
        self.masks = integers([self.module.config.mask_token_id] * (self.block_size - 1), self.target.device)

    @property
    def block_size(self) -> int:
        return int(self.module.config.block_size)

    @property
    def num_read(self) -> int:
        return len(self.module.config.target_layer_ids)

    @property
    def hidden_size(self) -> int:
        return int(self.module.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return torch.device(self.module.device)

    def session(self) -> DFlashSession:
        return DFlashSession(self)

    def sessions(self, count: int, capacity: int = 0) -> list[DFlashSession]:
        return [DFlashSession(self) for _ in range(count)]

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Tensor, Tensor | None]]:
        return one_by_one(feeds)

    @torch.inference_mode()
    def draft_block(self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int) -> Drafted:
        assert isinstance(feed.session, DFlashSession)
        session, warp = feed.session, ask.warp
        session.feed(feed.tokens, 0)
        states = session.block(session.length)[:length]
        logits = self.logits(states)
        q = None if warp.greedy else warp(logits)
        if q is None:
            tokens = warp.first(logits)
        else:
            rng = rng.of_round(position) if ask.by_round else rng
            tokens = pick_each([rng] * length, q, range(position, position + length), DRAFT)
        num = of_tokens = None
        if ask.min_draft_probability:
            of_tokens = probability(tokens, logits, q)
            enough = (of_tokens >= ask.min_draft_probability).long().cumprod(0).sum()
            num = (enough + 1).clamp(max=length)[None]  # the unlikely token is the last one
        if ask.keep_q and q is None:
            q = UNIT_TEMPERATURE(logits)
        return Drafted(tokens, q, None, logits.amax(-1), probability=of_tokens, num_drafted=num)

    def logits(self, x: Tensor) -> Tensor:
        """[R, V] of the assistant's states x[R, D], by the target's output layer."""
        output = self.target.module.get_output_embeddings()
        return self.target.as_logits(output(x.to(output.weight.device)))


def _embedding(module: Any) -> nn.Module:
    """The target's embedding without a norm of its own, which a block's tokens do not get, on the same weights."""
    embedding: nn.Module = module.get_input_embeddings()
    if not hasattr(embedding, "embed_norm"):
        return embedding
    plain = copy.copy(embedding)
    plain._modules = {**embedding._modules, "embed_norm": nn.Identity()}
    return plain


def check(place: str, target: Any, name_of_target: str, lengths: Mapping[str, int]) -> Any:
    """The config of a DFlash draft that fits the target with this config and the methods' chains (label: length).

    Raises ModelError.
    """
    try:
        config = AutoConfig.from_pretrained(place)
    except Exception as error:
        fault = hub_fault(place, error) or f"DFlash draft '{place}' has no config that transformers reads:" \
            f" {first_line(error)}"  # fmt: skip
        raise ModelError(f"{fault}; draft.dflash takes a folder or hub id that transformers loads.") from error
    values = config.to_dict()
    if lacking := [name for name in FIELDS if values.get(name) is None]:
        raise ModelError(
            f"draft '{place}' ({config.model_type}) has no {lacking[0]} in its config, so it is no DFlash draft that"
            " transformers knows; draft.dflash takes an assistant with block_size, mask_token_id and target_layer_ids."
        )
    text = target.get_text_config(decoder=True)
    wanted = [("hidden_size", text.hidden_size)]
    wanted += [("vocab_size", text.vocab_size)] if values.get("vocab_size") else []
    for what, there in wanted:
        if values[what] != there:
            raise ModelError(
                f"DFlash draft '{place}' was made for a target with {what} {values[what]}, but model"
                f" '{name_of_target}' has {there}; name the draft of this target."
            )
    if not 0 <= config.mask_token_id < text.vocab_size:
        raise ModelError(
            f"DFlash draft '{place}' has mask_token_id {config.mask_token_id}, but model '{name_of_target}' has"
            f" {text.vocab_size} tokens; name the draft of this target."
        )
    total = int(text.num_hidden_layers)
    if not config.target_layer_ids or not all(0 <= layer < total for layer in config.target_layer_ids):
        raise ModelError(
            f"DFlash draft '{place}' reads the outputs of the layers {', '.join(map(str, config.target_layer_ids))},"
            f" but model '{name_of_target}' has the layers 0 to {total - 1}; name the draft of this target."
        )
    for label, length in lengths.items():
        if length > config.block_size - 1:
            raise ModelError(
                f"gamma of '{label}' is {length}, but DFlash draft '{place}' drafts blocks of {config.block_size}, of"
                f" which the first token is known; set gamma to at most {config.block_size - 1}."
            )
    return config


def layers_read(config: Any, total: int) -> list[int]:
    """The target's layers whose outputs are read, where the last one's are the final states, after the last norm."""
    return [layer + (layer == total - 1) for layer in config.target_layer_ids]


def load(place: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The assistant's module. Raises ModelError."""
    try:
        module, result = AutoModel.from_pretrained(place, dtype=dtype, output_loading_info=True)
    except Exception as error:
        raise ModelError(f"DFlash draft '{place}' cannot be loaded: {first_line(error)}") from error
    if missing := sorted(result["missing_keys"]):
        raise ModelError(f"DFlash draft '{place}' lacks weights ({missing[0]}); get all its files.")
    return module.to(device).eval()
