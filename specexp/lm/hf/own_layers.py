"""A draft made of some of the target's own layers, on the same weights: nothing is loaded, and only caches are new.

The draft is the target's module with fewer layers between the same embedding, last norm and head. Where they are the
first ones, each computes what it computes in the target, so that the draft can use the target's cached keys and values
(`sessions_beside`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from specexp.errors import ModelError
from specexp.lm.model import Session
from specexp.lm.native.cuda_graphs import GraphSession
from specexp.lm.native.kv_cache import NativeSession, Pool
from specexp.lm.native.native_forward import NativeForward

if TYPE_CHECKING:
    from specexp.lm.hf.hf_model import HFModel

# Attributes that hold a layer's place in the stack, which selects its part of the cache.
PLACES = ("layer_idx", "layer_id", "layer_number")


@dataclass(frozen=True, slots=True)
class OwnLayers:
    """Which layers of the target a model has, in order, and the native forward of them if the target runs on it."""

    indices: tuple[int, ...]
    native: NativeForward | None

    @property
    def from_the_first(self) -> bool:
        return self.indices == tuple(range(len(self.indices)))


def module_of_layers(module: Any, indices: Sequence[int], name: str) -> Any:
    """The causal model `module` with these layers alone, on the same weights. Raises ModelError."""
    if any(hasattr(each, "_hf_hook") for each in module.modules()):
        raise ModelError(
            f"model '{name}': its layers cannot be a draft of their own while accelerate moves them (device auto,"
            " offload); load the target on one device."
        )
    config = module.config.get_text_config(decoder=True)
    total = int(config.num_hidden_layers)
    path = stack_path(module, total, name)
    config = copy.deepcopy(module.config)
    text = config.get_text_config(decoder=True)
    for key, value in list(vars(text).items()):
        # One entry for each layer: their kinds, or which of them have no positions.
        if isinstance(value, list) and len(value) == total and ("layer" in key or "block" in key):
            setattr(text, key, [value[i] for i in indices])
    text.num_hidden_layers = len(indices)
    layers = module.get_submodule(path)
    chosen = nn.ModuleList(_placed(layers[i], place) for place, i in enumerate(indices))
    return _with_child(module, path.split("."), chosen, config, text)


def stack_path(module: Any, total: int, name: str) -> str:
    """The name of the list that holds the decoder's layers. Raises ModelError."""
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module
    inside = {id(each) for each in decoder.modules()}
    for path, each in module.named_modules():
        if isinstance(each, nn.ModuleList) and len(each) == total and id(each) in inside:
            return str(path)
    raise ModelError(f"model '{name}': its layers are not in one list, so a draft cannot have or read them.")


def _with_child(module: Any, path: Sequence[str], child: Any, config: Any, text: Any) -> Any:
    """A copy of `module` with another module at `path`; the copies on the way have the new configs."""
    if not path:
        return child
    result = _copied(module)
    if hasattr(result, "config"):
        result.config = text if result.config is module.config.get_text_config(decoder=True) else config
    result._modules[path[0]] = _with_child(module._modules[path[0]], path[1:], child, config, text)
    return result


def _placed(module: Any, place: int) -> Any:
    """A copy of a layer that is at another place; weights and whatever does not know its place are the same."""
    result = _copied(module)
    for key in PLACES:
        if isinstance(getattr(result, key, None), int):
            setattr(result, key, place)
    for key, child in result._modules.items():
        if child is not None and any(hasattr(each, name) for each in child.modules() for name in PLACES):
            result._modules[key] = _placed(child, place)
    return result


def _copied(module: Any) -> Any:
    """A copy with the same weights, whose children and hooks can be replaced.

    transformers adds its hooks that capture hidden states to every model at its first forward that asks for them: in
    hooks that are shared each layer would be captured twice.
    """
    result = copy.copy(module)
    result._modules = dict(module._modules)
    for name, value in vars(module).items():
        if isinstance(value, dict) and "_hooks" in name:
            setattr(result, name, copy.copy(value))
    return result


@torch.inference_mode()
def sessions_beside(model: HFModel, leaders: Sequence[Session]) -> Sequence[Session] | None:
    """Sessions in the slots of the target's, where the native forwards of both run the same first layers; else None."""
    if not model.follows or model.native is None or model.recomputed_at is not None:
        return None
    if len(leaders) == 1 and isinstance(leaders[0], GraphSession):
        pools = model.graph_pools
        return None if pools is None else [pools.session_beside(leaders[0].inner.pool.buffers)]
    native = [leader for leader in leaders if isinstance(leader, NativeSession)]
    if len(native) < len(leaders):
        return None
    buffers, pools = native[0].pool.buffers, model.graph_pools
    if pools is not None and native[0].pool.recordings is not None:
        return pools.sessions_beside(buffers)
    pool = Pool(model.native, buffers, model.num_valid_ids)
    return [NativeSession(pool, leader.row) for leader in native]
