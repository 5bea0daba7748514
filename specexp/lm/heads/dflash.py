"""A DFlash draft: an assistant model of transformers that drafts a block of tokens in one forward.

Its config.json names the target's layers whose states it reads (`target_layer_ids`), the size of its block and the
token that stands for what is not drafted yet; embedding and output layer are the target's.

Shapes: G drafted tokens, R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import DRAFT, Rng, pick_each
from specexp.decoding.rules import UNIT_TEMPERATURE, without
from specexp.errors import ModelError, first_line
from specexp.lm.heads.base import ModuleDraft
from specexp.lm.heads.dflash_config import DFlashConfig
from specexp.lm.heads.dflash_session import DFlashSession
from specexp.lm.model import Feed
from specexp.lm.native.draft_loop import probability
from specexp.lm.transfer import integers


@dataclass(slots=True, eq=False)
class DFlashDraft(ModuleDraft):
    """The assistant and the target, whose sessions keep the states that it reads."""

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
    def device(self) -> torch.device:
        return torch.device(self.module.device)

    def session(self) -> DFlashSession:
        return DFlashSession(self)

    @torch.inference_mode()
    def draft_block(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, banned: Sequence[frozenset[int]] = ()
    ) -> Drafted:
        assert isinstance(feed.session, DFlashSession)
        session, warp = feed.session, ask.warp
        session.feed(feed.tokens, 0)
        states = session.block(session.length)[:length]
        logits = without(self.logits(states), banned)
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


def load(name: str, read: DFlashConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """The assistant's module. Raises ModelError."""
    try:
        module, result = AutoModel.from_pretrained(read.place, dtype=dtype, output_loading_info=True, **read.arguments)
    except Exception as error:
        raise ModelError(f"DFlash draft '{name}' cannot be loaded: {first_line(error)}") from error
    if missing := sorted(result["missing_keys"]):
        raise ModelError(f"DFlash draft '{name}' lacks weights ({missing[0]}); get all its files.")
    if more := sorted(set(result["unexpected_keys"]) - read.copies):
        raise ModelError(
            f"DFlash draft '{name}' has weights ({more[0]}) that transformers' DFlash module does not know; name"
            " another draft."
        )
    return module.to(device).eval()
