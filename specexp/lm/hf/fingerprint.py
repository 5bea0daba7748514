"""Identifies a model's weights, wherever they came from."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from specexp.lm.hf.offload import stored

NUM_VALUES = 64  # of each parameter


def fingerprint(module: Any) -> str:
    """Hash of the weights in sixteen hex digits, from the first values of every parameter.

    The values are rounded to bfloat16, so that the same weights in float32 and in bfloat16 have the same fingerprint;
    quantized weights have another one.
    """
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.device.type == "meta":
            parameter = stored(module, name)
        for part in _plain_parts(parameter.detach()):
            values = part.flatten()[:NUM_VALUES]
            if part.is_floating_point():
                values = values.to(torch.bfloat16).float()
            digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself, or those that a quantized one is made of: torchao's takes no views."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain_parts(getattr(tensor, name))]
