"""Attention masks of token trees for transformers' own forwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specexp.lm.configs.refusals import FULL, attention_kinds
from specexp.lm.model import Branches
from specexp.lm.native.attention import tree_attention, window_mask
from specexp.lm.transfer import to_device


def tree_mask(module: Any, start: int, num: int, branches: Branches) -> tuple[Tensor | dict[str, Tensor], Tensor]:
    """Attention mask[1, 1, num, start + num] and positions[num] of the tokens fed from slot `start` on.

    sdpa takes booleans, which are exact; eager takes floats and would silently misread booleans. A model with several
    kinds of layers takes one mask per kind; a sliding window counts positions, not slots.
    """
    kinds = attention_kinds(module.config)
    sees, at = tree_attention(start, num, branches)
    window = int(getattr(module.config.get_text_config(decoder=True), "sliding_window", None) or 0)
    masks = {
        kind: _as_mask(module, to_device(window_mask(sees, at, 0 if kind == FULL else window), module.device))
        for kind in kinds
    }
    return masks if len(masks) > 1 else masks[kinds[0]], to_device(at[start:], module.device)


def _as_mask(module: Any, sees: Tensor) -> Tensor:
    mask = sees[None, None]
    if module.config._attn_implementation == "sdpa":
        return mask
    dtype = module.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
