"""The session of a model that runs on transformers' own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from specexp.lm.hf.tree_mask import tree_mask
from specexp.lm.model import CHUNK, Branches, in_pieces
from specexp.lm.transfer import integers

if TYPE_CHECKING:
    from specexp.lm.hf.hf_model import HFModel

Array = torch.Tensor


class HFSession:
    """One sequence in a full-length `DynamicCache`."""

    def __init__(self, model: HFModel) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @torch.inference_mode()
    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        num = tokens.shape[0]
        if num > CHUNK and branches is None:
            return in_pieces(self.feed, torch.split(tokens, CHUNK), rows, hidden)
        positions = torch.arange(self._length, self._length + num, device=tokens.device)
        more: dict[str, Any] = {}
        if branches is not None:
            self._model.check_trees()
            more["attention_mask"], positions = tree_mask(self._model.module, self._length, num, branches)
        if self._model.keeps_rows:
            more["logits_to_keep"] = max(rows, 1)  # 0 would mean all of them
        out = self._model.module(
            input_ids=tokens[None],
            position_ids=positions[None],
            use_cache=True,
            output_hidden_states=hidden,
            **{self._model.cache_argument: self._cache},
            **more,
        )
        self._length += num
        logits = out.logits[0, :, : self._model.num_valid_ids]
        states = out.hidden_states[-1][0, num - rows :] if hidden else None
        logits = logits[logits.shape[0] - rows :].float()
        if self._model.suppressed:
            logits[:, self._model.suppressed] = float("-inf")
        return logits, states

    @torch.inference_mode()
    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self._length, f"cannot truncate to {length} of {self._length} slots"
        if slots:
            kept = integers([*range(length), *slots], self._model.device)
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys.index_select(2, kept), layer.values.index_select(2, kept)
        elif length == 0:
            self._cache = DynamicCache()
        elif length < self._length:
            self._cache.crop(length - self._length)
        self._length = length + len(slots)

    def slots(self) -> object:
        return tuple(tuple(layer.keys.flatten().tolist()) for layer in self._cache.layers)
