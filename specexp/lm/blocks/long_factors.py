"""Rotary angles that depend on the sequence length: where they change, and how a module is made to use one set.

`longrope` rotates keys and queries by one set of factors in sequences of up to `original_max_position_embeddings`
tokens and by another set in longer ones. transformers' modules select the set by the last position of a forward.

`dynamic` changes its frequencies only beyond `max_position_embeddings`, where every context ends anyway. The angles of
all other types (default, linear, llama3, yarn, proportional) do not depend on the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

RECOMPUTING = ("phi3", "phimoe")  # families whose generate() drops the cache at the boundary


@dataclass(frozen=True, slots=True)
class Boundary:
    """The length beyond which sequences use other factors; `recomputed`: generate() then recomputes all tokens."""

    length: int
    recomputed: bool


def boundary_of(config: Any) -> Boundary | None:
    """Read the boundary from a model's config; None if its angles do not depend on the length within its context."""
    length = length_of_change(config)
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if length is None or (context and length >= context):
        return None
    # Classes from a model's own repository may have the same model type and behave differently.
    known = config.model_type in RECOMPUTING and type(config).__module__.startswith("transformers.")
    return Boundary(length, known)


def length_of_change(config: Any) -> int | None:
    """The length beyond which the angles change, which may lie beyond the context; None if they do not."""
    text = config.get_text_config(decoder=True)
    lengths = [
        int(each["original_max_position_embeddings"])
        for each in _parameters(text)
        if _depends_on_length(text, each) and each.get("original_max_position_embeddings")
    ]
    return min(lengths) if lengths else None


def _depends_on_length(config: Any, parameters: Mapping[str, Any]) -> bool:
    kind = str(parameters.get("rope_type", "default"))
    # PhiMoE scales its angles by one of two factors under every type but the default.
    return kind == "longrope" or (config.model_type == "phimoe" and kind != "default")


def _parameters(config: Any) -> list[Mapping[str, Any]]:
    """The rope parameters of all layers: one mapping, or one per layer type."""
    result = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in result.values() if isinstance(each, Mapping)]
    return nested or [result]


@contextmanager
def turned(rotary: torch.nn.Module, long: bool, boundary: int) -> Iterator[None]:
    """Within the context, a model's rotary module uses the long factors (or the short ones) for every position.

    The module selects the factors by the largest position it receives. For the long ones it receives one more position,
    past the boundary; for the short ones all positions are clamped below the boundary: rows beyond it are not read from
    the short cache, and the rows that are read do not attend to them.
    """

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = kwargs.pop("position_ids") if "position_ids" in kwargs else args[1]
        if long:
            positions = torch.cat([positions, positions.new_full((positions.shape[0], 1), boundary)], dim=1)
        else:
            positions = positions.clamp(max=boundary - 1)
        return args[:1], {**kwargs, "position_ids": positions}

    def after(module: Any, args: Any, output: Any) -> Any:
        return tuple(part[:, :-1] for part in output) if long else output

    hooks = [rotary.register_forward_pre_hook(before, with_kwargs=True), rotary.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
