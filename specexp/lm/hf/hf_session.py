"""The session of a model that runs on transformers' own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from specexp.lm.hf.recurrent_state import new_cache
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
        self._cache = new_cache(model.module.config)
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
        answer = self._model.run_module(tokens, positions, self._cache, rows, hidden, **more)
        self._length += num
        return answer

    @torch.inference_mode()
    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self._length, f"cannot truncate to {length} of {self._length} slots"
        if slots:
            kept = integers([*range(length), *slots], self._model.device)
            for layer in self._layers():
                layer.keys, layer.values = layer.keys.index_select(2, kept), layer.values.index_select(2, kept)
        elif length == 0:
            self._cache = new_cache(self._model.module.config)
        elif length < self._length:
            self._cache.crop(length - self._length)
        self._length = length + len(slots)

    def slots(self) -> object:
        return tuple(tuple(layer.keys.flatten().tolist()) for layer in self._layers())

    def _layers(self) -> list[Any]:
        """The layers that have keys; others have no attention, or that of another layer."""
        return [layer for layer in self._cache.layers if layer.keys is not None]
