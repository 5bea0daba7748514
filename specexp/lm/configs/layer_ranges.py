"""Which of the target's layers make a draft: `0-9`, `0-28:4` (every fourth), `0,3,6-8`."""

from __future__ import annotations

import re
from typing import Any

from specexp.errors import ModelError

_PART = re.compile(r"(\d{1,6})(?:-(\d{1,6})(?::(\d{1,6}))?)?")
MOST_LAYERS = 100_000
HOW = "ranges of layers from 0 on, in ascending order, such as 0-9, 0-28:4 (every fourth) or 0,3,6-8"


def layer_indices(text: str) -> tuple[int, ...]:
    """The layers that `text` names. Raises ValueError."""
    result: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"it must be {HOW}.")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if not step or last < first or last >= MOST_LAYERS or (result and first <= result[-1]):
            raise ValueError(f"it must be {HOW}.")
        result += range(first, last + 1, step)
    return tuple(result)


def check_layers(layers: str, config: Any, name: str) -> tuple[int, ...]:
    """The layers of the target `name` that its draft is made of. Raises ModelError if its config cannot have that."""
    text = config.get_text_config(decoder=True)
    indices, total = layer_indices(layers), text.num_hidden_layers
    if isinstance(total, int) and indices[-1] >= total:
        raise ModelError(
            f"draft.layers is {layers}, but model '{name}' has {total} layers, 0 to {total - 1}; name some of these."
        )
    if len(indices) == total:
        raise ModelError(f"draft.layers is {layers}, which is all of model '{name}'; name fewer layers.")
    if getattr(text, "num_kv_shared_layers", None) or getattr(text, "hidden_size_per_layer_input", None):
        raise ModelError(
            f"model '{name}' ({config.model_type}) has layers that read other layers' keys or their own embedding,"
            " so that no part of them is a draft; name a draft model."
        )
    return indices
