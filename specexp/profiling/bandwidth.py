"""The bandwidth bound of a plain step, a lower bound of its seconds: the bytes it reads / a copy's bytes per second.

The copy is on the same device. A step on one token reads every weight once and computes little with it, so that memory
bandwidth limits its speed.
Weights that fit a CPU's caches are read from there: the bound therefore uses the bandwidth of a copy whose working set
is as large as the weights. It does not count activations, and what a kernel reads twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from specexp.lm.hf.hf_model import HFModel

LARGE = 512 << 20  # bytes of a working set that exceeds every last-level cache
ONCE = 64 << 20  # minimum number of bytes that one measurement copies
BEST_OF = 12


@dataclass(frozen=True, slots=True)
class BandwidthBound:
    """Bytes read for one token at a mean context, bytes per second of the two copies, and the resulting seconds."""

    weight_bytes: int
    cache_bytes: int
    copy_at_weights: float
    copy_large: float

    @property
    def seconds(self) -> float:
        return (self.weight_bytes + self.cache_bytes) / self.copy_at_weights


def measure(model: HFModel, context: float, clock: Callable[[], float] = time.perf_counter) -> BandwidthBound:
    """Measure the bandwidth bound of one step of this model after `context` tokens."""
    weights = weight_bytes(model.module)
    return BandwidthBound(
        weights, cache_bytes(model.module, context), bandwidth(model, weights, clock), bandwidth(model, LARGE, clock)
    )


def weight_bytes(module: Any) -> int:
    """Bytes of the parameters that one token reads: one row of an embedding, unless the head shares its weight.

    In a mixture of experts, only the experts that a token is routed to count.
    """
    config = module.config.get_text_config(decoder=True)
    head = module.get_output_embeddings()
    tied = None if head is None else head.weight
    rows = {id(x.weight): x.weight.shape[0] for x in module.modules() if isinstance(x, torch.nn.Embedding)}
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    read = 0.0
    for name, parameter in module.named_parameters():
        size = parameter.numel() * parameter.element_size()
        if id(parameter) in rows and parameter is not tied:
            size /= rows[id(parameter)]
        elif experts and ".experts." in name:
            size *= config.num_experts_per_tok / experts
        read += size
    return round(read)


def cache_bytes(module: Any, context: float) -> int:
    """Bytes of the keys and values of `context` tokens."""
    config = module.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * module.dtype.itemsize * context)


def bandwidth(model: HFModel, working_set: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes read and written per second by a copy whose source and destination take `working_set` bytes together."""
    source = torch.ones(max(1, working_set // 8), dtype=torch.float32, device=model.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    copies = -(-ONCE // moved)
    best = float("inf")
    for _ in range(BEST_OF):
        model.wait()
        start = clock()
        for _ in range(copies):
            target.copy_(source)
        model.wait()
        best = min(best, clock() - start)
    return copies * moved / best
