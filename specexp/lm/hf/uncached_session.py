"""The session of a model without a cache that can be continued: each row is the last of a forward of all its tokens.

It gives what `generate()` gives for such a model, at its cost: `prepare_inputs_for_generation` makes the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specexp.lm.model import Branches

if TYPE_CHECKING:
    from specexp.lm.hf.hf_model import HFModel


class UncachedSession:
    """One sequence, of which only the tokens are kept."""

    def __init__(self, model: HFModel) -> None:
        self._model = model
        self._tokens = model.ids([])

    @property
    def length(self) -> int:
        return int(self._tokens.shape[0])

    @torch.inference_mode()
    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if branches is not None:
            self._model.check_trees()
        assert branches is None, "a model without a cache takes no trees"
        self._tokens = torch.cat([self._tokens, tokens])
        ends = range(self.length - rows + 1, self.length + 1)
        parts = [self._last_row(self._tokens[:end], hidden) for end in ends]
        empty = torch.empty(0, self._model.vocab_size, device=self._model.device)
        logits = torch.cat([logits for logits, _ in parts]) if parts else empty
        states = [states for _, states in parts if states is not None]
        return logits, torch.cat(states) if states else None

    def _last_row(self, tokens: Tensor, hidden: bool) -> tuple[Tensor, Tensor | None]:
        module = self._model.module
        ids = tokens[None]
        inputs = module.prepare_inputs_for_generation(ids, use_cache=False, attention_mask=torch.ones_like(ids))
        out = module(**inputs, output_hidden_states=hidden)
        states = out.hidden_states[-1][0, -1:] if hidden else None
        return self._model.as_logits(out.logits[0, -1:]), states

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self.length, f"cannot truncate to {length} of {self.length} slots"
        assert not slots, "a model without a cache keeps no path of a tree"
        self._tokens = self._tokens[:length]

    def slots(self) -> object:
        return tuple(self._tokens.tolist())
