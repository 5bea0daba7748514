"""What a head learns from: the target's hidden states and logits for whole texts, by its own module's forward.

Shapes: B texts, T tokens, E hidden size of the target, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specexp.errors import ModelError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.own_layers import stack_path
from specexp.lm.kept_states import StateHooks


class TargetStates:
    """Reads the outputs of `layers` of a target, before its last norm for the last layer, too."""

    def __init__(self, target: HFModel, layers: Sequence[int]) -> None:
        if target.offloaded:
            raise ModelError(f"model '{target.name}' is offloaded; a drafter is trained on a target on one device.")
        self._target = target
        total = num_layers(target)
        stack: Any = target.module.get_submodule(stack_path(target.module, total, target.name))
        self._hooks = StateHooks([stack[layer] for layer in layers], target.device)

    @torch.no_grad()
    def __call__(self, ids_BT: Tensor, low: bool = False) -> tuple[Tensor, Tensor]:
        """States [B, T, 3 E] and logits [B, T, V] of padded texts; in bfloat16 where possible if `low`."""
        batch, length = ids_BT.shape
        with self._hooks.collecting() as last, torch.autocast(self._target.device.type, torch.bfloat16, enabled=low):
            out = self._target.module(input_ids=ids_BT.to(self._target.device), use_cache=False)
            states = last(batch * length)
        logits = self._target.as_logits(out.logits.reshape(batch * length, -1))
        return states.reshape(batch, length, -1), logits.reshape(batch, length, -1)


def num_layers(target: HFModel) -> int:
    """How many decoder layers a target has."""
    return int(target.module.config.get_text_config(decoder=True).num_hidden_layers)
