"""The session of a target's own MTP layers, which draft as transformers' `MtpModel` and `MTPCandidateGenerator` do.

In slot j of layer k are token j + k + 1, at its own position, and the output of layer k - 1 in slot j; for the first
layer, the target's final state (after the last norm) of token j. So layer k drafts the token k + 1 places after the
last committed one. Slots whose tokens are drafted are dropped when the round is committed, in all layers.

Shapes: N tokens, R rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import MtpCache

from specexp.lm.heads.reading import ReadingSession, cut
from specexp.lm.model import CHUNK

if TYPE_CHECKING:
    from specexp.lm.heads.mtp import MtpDraft


class MtpSession(ReadingSession):
    """One sequence. The layers' caches keep all slots, also those with a window, so that they can be cut back."""

    def __init__(self, model: MtpDraft) -> None:
        super().__init__(model.target)
        self._model = model
        self._cache = MtpCache()
        nothing = torch.zeros(0, model.hidden_size, dtype=model.module.dtype, device=model.device)
        self._outputs = [nothing] * model.num_layers  # of each layer, by slot

    def prefill(self) -> None:
        committed = min(self.length, self.known)
        for layer in range(self._model.num_layers):
            self._advance(layer, committed - 1 - layer)

    def forget(self, length: int) -> None:
        for layer, outputs in enumerate(self._outputs):
            self._cut(layer, min(outputs.shape[0], max(0, length - 1 - layer)))

    def _cut(self, layer: int, num: int) -> None:
        self._outputs[layer] = self._outputs[layer][:num]
        if layer < len(self._cache.layers):
            cut(self._cache.layers[layer], num)

    def states_of(self, lengths: Sequence[int]) -> Tensor:
        parts = [self._outputs[0][:0], *(self._state_of(length) for length in lengths)]
        return torch.cat(parts)

    def _state_of(self, length: int) -> Tensor:
        last, layer = self._model.num_layers - 1, max(0, length - self.known)
        beyond = layer - last
        if beyond > 0:
            return self._again(length)
        slot = length - 2 - layer
        if slot < 0:  # a text of one token has no state to draft from
            return self._outputs[0].new_zeros(1, self._model.hidden_size)
        for each in range(layer + 1):
            self._advance(each, slot + 1)
        return self._outputs[layer][slot : slot + 1]

    def _advance(self, layer: int, stop: int) -> None:
        """Fill the slots of a layer up to `stop`, which the layer before it has."""
        for start in range(self._outputs[layer].shape[0], stop, CHUNK):
            end = min(start + CHUNK, stop)
            before = self.states.of(start, end, self.text) if layer == 0 else self._outputs[layer - 1][start:end]
            x = self._run(layer, before, start + layer + 1, end + layer + 1)
            self._outputs[layer] = torch.cat([self._outputs[layer], x])

    def _run(self, layer: int, before: Tensor, start: int, stop: int) -> Tensor:
        """The outputs [N, D] of a layer for the tokens start .. stop - 1 and the states before[N, D]."""
        model = self._model
        positions = torch.arange(start, stop, device=model.device)[None]
        tokens = self.tokens[start:stop][None].to(model.device)
        x: Tensor = model.module.forward_layer(
            layer, before[None].to(model.device), positions, self._cache, input_ids=tokens
        )
        return x[0]

    def _again(self, length: int) -> Tensor:
        """The last layer once more, on its own last output: measured chains may be longer than there are layers."""
        layer = self._model.num_layers - 1
        num = self._outputs[layer].shape[0]
        if not num:
            return self._outputs[0].new_zeros(1, self._model.hidden_size)
        x = self._run(layer, self._outputs[layer][-1:], length - 1, length)
        self._cut(layer, num)
        return x

    def logits(self, x: Tensor) -> Tensor:
        return self._model.logits(x)
