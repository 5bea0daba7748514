"""Handles rotary angles that depend on the sequence length, so that the logits depend on the tokens alone.

`longrope` rotates keys and queries by one set of factors in sequences of up to `original_max_position_embeddings`
tokens and by another set in longer ones. transformers selects the set by the last position of a forward, so that the
logits of a row depend on which other tokens the forward holds.

- Phi-3 and PhiMoE: generate() drops its cache at the boundary and feeds the whole sequence again. Each row is therefore
  computed as the last of its sequence, with all keys rotated by that row's factors: `LongRopeSession` does the same for
  any block, with one cache per set.
- Other models keep the keys that were rotated before the boundary: the logits after it depend on where the prompt
  ended. Their context ends at the boundary, and `note` says so.

`dynamic` changes its frequencies only beyond `max_position_embeddings`, where every context ends anyway. The angles of
all other types (default, linear, llama3, yarn, proportional) do not depend on the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specexp.lm.model import Branches, Session
from specexp.lm.transfer import integers, to_device

RECOMPUTING = ("phi3", "phimoe")  # families whose generate() drops the cache at the boundary


@dataclass(frozen=True, slots=True)
class Boundary:
    """The length beyond which sequences use other factors; `recomputed`: generate() then recomputes all tokens."""

    length: int
    recomputed: bool


def boundary_of(config: Any) -> Boundary | None:
    """Read the boundary from a model's text config; None if its angles do not depend on the length in its context."""
    lengths = [
        int(each["original_max_position_embeddings"])
        for each in _parameters(config)
        if _depends_on_length(config, each) and each.get("original_max_position_embeddings")
    ]
    context = getattr(config, "max_position_embeddings", None)
    if not lengths or (context and min(lengths) >= context):
        return None
    # Classes from a model's own repository may have the same model type and behave differently.
    known = config.model_type in RECOMPUTING and type(config).__module__.startswith("transformers.")
    return Boundary(min(lengths), known)


def note(name: str, config: Any) -> str | None:
    """A note for the user if the model's context ends at the boundary; None otherwise."""
    boundary = boundary_of(config)
    if boundary is None or boundary.recomputed:
        return None
    return (
        f"note: model '{name}' ({config.model_type}) has rope type longrope, whose factors change at"
        f" {boundary.length} tokens; logits beyond depend on how tokens are split into forwards. Its context ends there"
        f" (of {config.max_position_embeddings}): longer prompts are refused, and outputs end."
    )


def _depends_on_length(config: Any, parameters: Mapping[str, Any]) -> bool:
    kind = str(parameters.get("rope_type", "default"))
    # PhiMoE scales its angles by one of two factors under every type but the default.
    return kind == "longrope" or (config.model_type == "phimoe" and kind != "default")


def _parameters(config: Any) -> list[Mapping[str, Any]]:
    """The rope parameters of all layers: one mapping, or one per layer type."""
    result = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in result.values() if isinstance(each, Mapping)]
    return nested or [result]


class LongRopeSession:
    """Two caches of one sequence, one per set of factors. Each is fed only when a row needs it."""

    def __init__(self, short: Session, long: Session, rotary: torch.nn.Module, boundary: int) -> None:
        self._caches = {False: short, True: long}
        self._rotary, self._boundary = rotary, boundary
        self._tokens: Tensor | None = None  # of every slot

    @property
    def length(self) -> int:
        return 0 if self._tokens is None else self._tokens.shape[0]

    @torch.inference_mode()
    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        start = self.length
        self._tokens = tokens if self._tokens is None else torch.cat([self._tokens, tokens])
        places = _positions(start, self.length, branches)
        long = [place >= self._boundary for place in (places[len(places) - rows :] if rows else [max(places)])]
        answers = {kind: self._feed(kind, start, rows, hidden, branches) for kind in sorted(set(long))}
        if len(answers) == 1:
            return answers[long[0]]
        chosen = to_device(torch.tensor(long), tokens.device)[:, None]
        (few, few_states), (many, many_states) = answers[False], answers[True]
        if few_states is None or many_states is None:
            return torch.where(chosen, many, few), None
        return torch.where(chosen, many, few), torch.where(chosen, many_states, few_states)

    def _feed(
        self, long: bool, start: int, rows: int, hidden: bool, branches: Branches | None
    ) -> tuple[Tensor, Tensor | None]:
        """Feed the tokens before slot `start` that this cache lacks, and all tokens from `start` on."""
        assert self._tokens is not None
        cache = self._caches[long]
        with turned(self._rotary, long, self._boundary):
            if branches is not None and cache.length < (chain := min(start, branches.base)):
                cache.feed(self._tokens[cache.length : chain], 0)  # a chain by itself, so that `feed` can split it
            return cache.feed(self._tokens[cache.length :], rows, hidden, branches)

    @torch.inference_mode()
    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self.length, f"cannot truncate to {length} of {self.length} slots"
        for cache in self._caches.values():
            if cache.length > length:
                # This cache may lack the end of the kept path: keep the beginning.
                cache.truncate(length, [slot for slot in slots if slot < cache.length])
        if self._tokens is not None:
            kept = integers(slots, self._tokens.device)
            self._tokens = torch.cat([self._tokens[:length], self._tokens[kept]]) if slots else self._tokens[:length]

    def slots(self) -> object:
        return () if self._tokens is None else tuple(self._tokens.tolist())


def _positions(start: int, stop: int, branches: Branches | None) -> list[int]:
    """Positions of the tokens in slots start .. stop - 1."""
    if branches is None:
        return list(range(start, stop))
    base = branches.base
    return [slot if slot < base else base + branches.depths[slot - base] for slot in range(start, stop)]


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
