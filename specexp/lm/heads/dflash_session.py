"""The session of a DFlash draft, which scores a whole block of tokens in one forward, as transformers'
`DFlashTokenCandidateGenerator` has it.

The block is the last committed token and masks; its rows attend to each other and to keys and values of the committed
tokens before it, which are made of the target's states. Nothing in it is a drafted token, so each row is the
distribution of its token whatever the ones before it turn out to be. After the forward, only the committed tokens'
keys and values are kept.

Shapes: N tokens, R rows, B block size, T layers that are read, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DFlashCache

from specexp.lm.heads.reading import ReadingSession, cut

if TYPE_CHECKING:
    from specexp.lm.heads.dflash import DFlashDraft


class DFlashSession(ReadingSession):
    """One sequence. The cache keeps all its slots, also in layers with a window, so that they can be cut back."""

    def __init__(self, model: DFlashDraft) -> None:
        super().__init__(model.target)
        self._model = model
        self._cache = DFlashCache()
        self._num = 0  # committed tokens in the cache
        self._block: tuple[int, Tensor] | None = None  # the length of the text before the newest block, and its states

    def prefill(self) -> None:
        """The first block takes in all committed tokens: without it, there is no forward."""

    def forget(self, length: int) -> None:
        self._block = None
        self._cut(min(self._num, length))

    def _cut(self, num: int) -> None:
        for layer in self._cache.layers:
            cut(layer, num)
        self._num = num

    def states_of(self, lengths: Sequence[int]) -> Tensor:
        parts = [torch.zeros(0, self._model.hidden_size, dtype=self._model.module.dtype, device=self._model.device)]
        for length in lengths:
            # What follows a drafted token is in the block; measured chains may be longer than it is.
            known = min(length, self.known)
            row = min(length - known, self._model.block_size - 2)
            parts.append(self.block(known)[row : row + 1])
        return torch.cat(parts)

    @torch.inference_mode()
    def block(self, length: int) -> Tensor:
        """The states [B - 1, D] that say what the tokens after the first `length` are."""
        if self._block is None or self._block[0] != length:
            self._block = length, self._forward(length)
        return self._block[1]

    def _forward(self, length: int) -> Tensor:
        model, before = self._model, length - 1
        start = min(self._num, before)
        self._cut(start)
        read = model.num_read * model.hidden_size
        states = torch.zeros(0, read, dtype=model.module.dtype, device=model.device)
        if start < before:
            states = self.states.of(start, before, self.text).to(model.device, model.module.dtype)
        self._cache.set_previous_accepted_tokens(before - start)
        tokens = torch.cat([self.tokens[before:length], model.masks])
        x: Tensor = model.module(
            noise_embeds=model.embedding(tokens[None]).to(model.device),
            context_hidden_states=states[None],
            position_ids=torch.arange(start, before + model.block_size, device=model.device)[None],
            attention_mask=None,
            past_key_values=self._cache,
        ).last_hidden_state
        self._cut(before)
        return x[0, 1:]

    def logits(self, x: Tensor) -> Tensor:
        return self._model.logits(x)
