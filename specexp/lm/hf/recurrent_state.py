"""The state of models with recurrent or convolutional layers on transformers' forward, for `replay.py`.

transformers keeps these states in a `DynamicCache`, beside the keys and values of attention layers. Some families
continue from a state by several tokens at a time, others do with the help of `carried_state.py`; `HFModel` measures it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
)

from specexp.lm.hf.carried_state import carried
from specexp.lm.model import CHUNK, in_pieces

if TYPE_CHECKING:
    from specexp.lm.hf.hf_model import HFModel


# How a model continues from a state: by several tokens in one forward, by itself or with the state carried into its
# layers, or by one token per forward.
Continuation = Literal["several", "carried", "one"]
SEVERAL: Continuation = "several"
CARRIED: Continuation = "carried"
BY_ONE: Continuation = "one"
# Attributes of submodules in which RecurrentGemma keeps its states, for one sequence at a time.
HELD_BY_MODULES = ("conv1d_state", "recurrent_states")


@dataclass(frozen=True, slots=True)
class LayerCopy:
    """The states of one layer, by their index in it."""

    conv: dict[int, Tensor | None]
    recurrent: dict[int, Tensor | None]
    begun: dict[int, bool]


@dataclass(frozen=True, slots=True)
class StateCopy:
    """The state after `length` tokens: of the cache's layers, by index, and of submodules that hold their own."""

    length: int
    layers: dict[int, LayerCopy]
    values: list[Tensor | None]


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for this config whose attention layers keep all keys and values, also those with a window, so
    that they can be cut back. Without other kinds of layers it is one that makes its layers when they are first used.
    """
    cache = DynamicCache(config=config)
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return DynamicCache()
    for i, layer in enumerate(cache.layers):
        if type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
            cache.layers[i] = LinearAttentionAndFullAttentionLayer(layer.number_of_states)
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = DynamicLayer()
    return cache


class HFState:
    """A `State` of a model on transformers' forward."""

    def __init__(self, model: HFModel, how: Continuation) -> None:
        self._model, self._how = model, how
        self._cache = new_cache(model.module.config)
        self._length = 0
        self._held = [
            (part, name) for part in model.module.modules() for name in HELD_BY_MODULES if hasattr(part, name)
        ]
        self._values: list[Tensor | None] = [None] * len(self._held)

    @torch.inference_mode()
    def advance(self, tokens: Tensor, position: int, rows: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        assert position == self._length, f"the state is after {self._length} tokens, not {position}"
        size = CHUNK
        if not self._length and (self._how == BY_ONE or (self._how == CARRIED and self._held)):
            size = tokens.shape[0]  # a later piece would go token by token, all of it or its recurrent blocks
        elif self._how == BY_ONE:
            size = 1
        return in_pieces(self._forward, torch.split(tokens, size), rows, hidden)

    def _forward(self, tokens: Tensor, rows: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(self._length, self._length + tokens.shape[0], device=tokens.device)
        for (part, name), value in zip(self._held, self._values, strict=True):
            setattr(part, name, value)
        continues = self._how == CARRIED and self._length and tokens.shape[0] > 1
        with carried(self._cache) if continues else nullcontext():
            answer = self._model.run_module(tokens, positions, self._cache, rows, hidden)
        self._values = [getattr(part, name) for part, name in self._held]
        self._length += tokens.shape[0]
        return answer

    @torch.inference_mode()
    def copy(self) -> StateCopy:
        layers = {
            i: LayerCopy(_cloned(layer.conv_states), _cloned(layer.recurrent_states), dict(layer.has_previous_state))
            for i, layer in enumerate(self._cache.layers)
            if isinstance(layer, LinearAttentionCacheLayerMixin)
        }
        return StateCopy(self._length, layers, [None if value is None else value.clone() for value in self._values])

    @torch.inference_mode()
    def restore(self, copy: StateCopy | None) -> None:
        if copy is None:
            self._cache, self._length = new_cache(self._model.module.config), 0
            self._values = [None] * len(self._held)
            return
        self._length = copy.length
        self._values = [None if value is None else value.clone() for value in copy.values]
        for i, layer in enumerate(self._cache.layers):
            if i in copy.layers:
                layer.conv_states = _cloned(copy.layers[i].conv)
                layer.recurrent_states = _cloned(copy.layers[i].recurrent)
                layer.has_previous_state = dict(copy.layers[i].begun)
            if isinstance(layer, DynamicLayer) and layer.is_initialized and layer.get_seq_length() > self._length:
                # By the class that has the keys: a layer that has states as well would want to cut those back.
                kind = DynamicIndexedLayer if isinstance(layer, DynamicIndexedLayer) else DynamicLayer
                kind.crop(layer, self._length - layer.get_seq_length())

    def check_trees(self) -> None:
        self._model.check_trees()


def _cloned(states: dict[int, Tensor | None]) -> dict[int, Tensor | None]:
    return {i: None if state is None else state.clone() for i, state in states.items()}
