"""What the processes of a group do alike: check a config, and say what the weights of their shards are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from specexp.errors import ModelError
from specexp.lm.configs.refusals import KEY_VALUE
from specexp.lm.hf import loading, model_config
from specexp.lm.hf.model_facts import NUM_VALUES
from specexp.lm.hf.source import model_source
from specexp.lm.runtime import ModelConfig
from specexp.lm.sharded.group import under_torchrun


def check_shards(config: ModelConfig) -> None:
    """Raise ModelError if by its config the model cannot be shared among `config.tensor_parallel` processes."""
    size, named = config.tensor_parallel, f"tensor_parallel is {config.tensor_parallel}, but model '{config.model}'"
    source = model_source(config)
    if source.gguf or source.adapter:
        what = "is a GGUF file" if source.gguf else "has an adapter"
        raise ModelError(f"{named} {what}, which transformers does not shard; give a folder of whole weights.")
    of_model = loading.read_config(config)
    text = of_model.get_text_config(decoder=True)
    if model_config.cache_kind(of_model) != KEY_VALUE:
        raise ModelError(f"{named} keeps a state that is not keys and values; leave tensor_parallel out.")
    if not getattr(text, "base_model_tp_plan", None):
        raise ModelError(
            f"{named} ({text.model_type}) has no plan in transformers by which its layers are shared; leave"
            " tensor_parallel out, or set device to auto."
        )
    heads = {
        name: number
        for name in ("num_attention_heads", "num_key_value_heads")
        if isinstance(number := getattr(text, name, None), int)
    }
    for name, number in heads.items():
        if number % size:
            fitting = [str(n) for n in range(2, number + 1) if all(each % n == 0 for each in heads.values())]
            way_out = f"give {' or '.join(fitting)}, or leave it out" if fitting else "leave tensor_parallel out"
            raise ModelError(f"{named} has {name} {number}, which {size} processes cannot share evenly; {way_out}.")
    if config.device == "cuda" and torch.cuda.device_count() < size and not under_torchrun():
        raise ModelError(
            f"tensor_parallel is {size} and device cuda, but this machine has {torch.cuda.device_count()} GPUs; give at"
            " most as many, or set device to cpu."
        )
    if config.device == "cpu" and torch.cuda.is_available():
        raise ModelError(
            f"tensor_parallel is {size} and device cpu, but transformers shards over the GPUs that it sees; set device"
            " to cuda, or CUDA_VISIBLE_DEVICES to nothing."
        )


@dataclass(frozen=True, slots=True)
class ShardValues:
    """The first values of one parameter's shard, and the dimension along which it is a part; None of a whole one."""

    values: Tensor
    dim: int | None


def first_values(module: Any) -> dict[str, ShardValues]:
    """What this process has of each parameter's first `NUM_VALUES` values."""
    result = {}
    for name, parameter in module.named_parameters():
        dim = next((each.dim for each in getattr(parameter, "placements", ()) if isinstance(each, Shard)), None)
        own = (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()
        num_rows = math.ceil(NUM_VALUES / math.prod(parameter.shape[1:]))  # of the whole, with its first values
        own = own[:num_rows] if dim else own.flatten()[:NUM_VALUES]
        result[name] = ShardValues(own.cpu(), dim)
    return result


def joined_values(shards: Sequence[Mapping[str, ShardValues]], name: str) -> Tensor:
    """The first values of a parameter, from those of its shards in the order of the processes."""
    parts, dim = [each[name].values for each in shards], shards[0][name].dim
    return parts[0] if dim is None else torch.cat(parts, dim)
