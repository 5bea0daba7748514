"""Sessions of models whose rotary angles depend on the sequence length, so that the logits depend on the tokens alone.

`blocks/long_factors.py` has the angles. transformers selects the set of factors by the last position of a forward, so
that the logits of a row depend on which other tokens the forward holds.

- Phi-3 and PhiMoE: generate() drops its cache at the boundary and feeds the whole sequence again. Each row is therefore
  computed as the last of its sequence, with all keys rotated by that row's factors: `LongRopeSession` does the same for
  any block, with one cache per set.
- Other models keep the keys that were rotated before the boundary: the logits after it depend on where the prompt
  ended. Their context ends at the boundary, and `note` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specexp.lm.blocks.long_factors import boundary_of, turned
from specexp.lm.model import Branches, Session
from specexp.lm.transfer import integers, to_device


def note(name: str, config: Any) -> str | None:
    """A note for the user if the model's context ends at the boundary; None otherwise."""
    boundary = boundary_of(config)
    if boundary is None or boundary.recomputed:
        return None
    context = config.get_text_config(decoder=True).max_position_embeddings
    return (
        f"note: model '{name}' ({config.model_type}) has rope type longrope, whose factors change at"
        f" {boundary.length} tokens; logits beyond depend on how tokens are split into forwards. Its context ends there"
        f" (of {context}): longer prompts are refused, and outputs end."
    )


class LongRopeSession:
    """Two caches of one sequence, one per set of factors. Each is made and fed only when a row needs it."""

    def __init__(self, make: Callable[[bool], Session], boundary: int) -> None:
        """`make` returns an empty cache for the short factors, or (True) for the long ones."""
        self._make, self._boundary = make, boundary
        self._caches: dict[bool, Session] = {}
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
        if long not in self._caches:
            self._caches[long] = self._make(long)
        cache = self._caches[long]
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


class TurnedSession:
    """A session on a module's own forward, which uses one set of factors for every position."""

    def __init__(self, session: Session, rotary: torch.nn.Module, long: bool, boundary: int) -> None:
        self._session, self._rotary, self._long, self._boundary = session, rotary, long, boundary
        self.truncate, self.slots = session.truncate, session.slots

    @property
    def length(self) -> int:
        return self._session.length

    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        with turned(self._rotary, self._long, self._boundary):
            return self._session.feed(tokens, rows, hidden, branches)
