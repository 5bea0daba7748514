"""Rotary angles that depend on the length of a sequence, and how decoding stays a function of the tokens alone.

`longrope` turns keys and queries by one set of factors in sequences of up to `original_max_position_embeddings` tokens
and by another in longer ones. transformers picks the set by the last position of a forward, so that what a block says
depends on which tokens are in it.

- Phi-3 and PhiMoE: generate() drops its cache at the boundary and feeds the sequence once more. Each row is therefore
  computed as the last of its sequence, all of it turned by that row's factors: `LongRopeSession` does the same for any
  block, with a cache for either set.
- Others keep the keys that were turned before the boundary: what follows it depends on where the prompt ended. Their
  context ends at the boundary, and `note` says so.

`dynamic` changes its frequencies beyond `max_position_embeddings` only, where every context ends anyway. The angles of
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

RECOMPUTING = ("phi3", "phimoe")  # whose generate() drops the cache at the boundary


@dataclass(frozen=True, slots=True)
class Boundary:
    """Sequences of more than `length` tokens are turned by other factors; `recomputed`: all of their tokens are."""

    length: int
    recomputed: bool


def boundary_of(config: Any) -> Boundary | None:
    """From a model's text config; None where its angles do not depend on the length within its context."""
    lengths = [
        int(each["original_max_position_embeddings"])
        for each in _parameters(config)
        if _depends_on_length(config, each) and each.get("original_max_position_embeddings")
    ]
    context = getattr(config, "max_position_embeddings", None)
    if not lengths or (context and min(lengths) >= context):
        return None
    # Classes from a model's own repository may bear the name without doing the same.
    known = config.model_type in RECOMPUTING and type(config).__module__.startswith("transformers.")
    return Boundary(min(lengths), known)


def note(name: str, config: Any) -> str | None:
    """What is to be said of a model before its weights are read."""
    boundary = boundary_of(config)
    if boundary is None or boundary.recomputed:
        return None
    return (
        f"note: model '{name}' ({config.model_type}) has rope type longrope, whose factors change at"
        f" {boundary.length} tokens; what it says beyond depends on how tokens were grouped. Its context ends there"
        f" (of {config.max_position_embeddings}): longer prompts are refused, and outputs end."
    )


def _depends_on_length(config: Any, parameters: Mapping[str, Any]) -> bool:
    kind = str(parameters.get("rope_type", "default"))
    # PhiMoE scales its angles by one of two factors under every type but the default.
    return kind == "longrope" or (config.model_type == "phimoe" and kind != "default")


def _parameters(config: Any) -> list[Mapping[str, Any]]:
    """The rope parameters of all its layers, which may have some of their own for each type."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in found.values() if isinstance(each, Mapping)]
    return nested or [found]


class LongRopeSession:
    """Two caches of one sequence, one for either set of factors. Each is fed when a row of its own is asked for."""

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
        """All that this cache lacks of the tokens before slot `start`, and those from there on."""
        assert self._tokens is not None
        cache = self._caches[long]
        with turned(self._rotary, long, self._boundary):
            if branches is not None and cache.length < (chain := min(start, branches.base)):
                cache.feed(self._tokens[cache.length : chain], 0)  # which may be long: in pieces
            return cache.feed(self._tokens[cache.length :], rows, hidden, branches)

    @torch.inference_mode()
    def keep(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self.length, f"cannot keep {length} of {self.length} slots"
        for cache in self._caches.values():
            if cache.length > length:
                # Of a path whose end this cache lacks, its beginning.
                cache.keep(length, [slot for slot in slots if slot < cache.length])
        if self._tokens is not None:
            kept = integers(slots, self._tokens.device)
            self._tokens = torch.cat([self._tokens[:length], self._tokens[kept]]) if slots else self._tokens[:length]

    def slots(self) -> object:
        return () if self._tokens is None else tuple(self._tokens.tolist())


def _positions(start: int, stop: int, branches: Branches | None) -> list[int]:
    """Where the tokens in slots start .. stop - 1 stand."""
    if branches is None:
        return list(range(start, stop))
    base = branches.base
    return [slot if slot < base else base + branches.depths[slot - base] for slot in range(start, stop)]


@contextmanager
def turned(rotary: torch.nn.Module, long: bool, boundary: int) -> Iterator[None]:
    """Inside, a model's rotary module turns every position by the long factors, or by the short ones.

    It picks them by the largest position it is given. For the long ones it is given one more, past the boundary; for
    the short ones none that reaches it: rows beyond are not read from the short cache, nor seen by what is.
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
