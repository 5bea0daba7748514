"""What sessions share whose drafts read the target's hidden states of a committed text and draft a few tokens more.

Shapes: N tokens, R rows, T layers that are read, D hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Branches, Session, StateKeeper
from specexp.lm.transfer import integers


class ReadStates:
    """The target's states of a text: those that its session keeps, or those of a session that is fed the text here."""

    def __init__(self, target: HFModel) -> None:
        self._target = target
        self._keeper: StateKeeper | None = None
        self._own: Session | None = None
        self._own_ids: list[int] = []

    def use(self, keeper: Session | None) -> None:
        assert keeper is None or isinstance(keeper, StateKeeper)
        self._keeper = keeper

    def of(self, start: int, stop: int, text: Callable[[int], list[int]]) -> Tensor:
        """The states [stop - start, T D] of the tokens start .. stop - 1; `text` gives the first so many ids, which are
        needed where the target's session is at another text."""
        assert start < stop, f"no states from {start} to {stop}"
        keeper = self._keeper or self._read(text(stop))
        states: Tensor = keeper.states(start, stop)
        return states

    def _read(self, ids: list[int]) -> StateKeeper:
        """A session of the target's own that holds this text."""
        self._own = self._own or self._target.session()
        pairs = zip(ids, self._own_ids, strict=False)
        common = next((i for i, (new, old) in enumerate(pairs) if new != old), min(len(ids), len(self._own_ids)))
        if common < len(ids):  # else it is at this text, or at one that continues it
            self._own.truncate(common)
            self._own.feed(integers(ids[common:], self._target.device), 0)
            self._own_ids = ids
        assert isinstance(self._own, StateKeeper)
        return self._own


def cut(layer: Any, num: int) -> None:
    """Keep the first `num` slots of a layer of transformers' cache."""
    if layer.is_initialized:
        layer.keys, layer.values = layer.keys[:, :, :num], layer.values[:, :, :num]


class ReadingSession(ABC):
    """A text, the first `known` tokens of which are committed; drafted ones may follow.

    Of a text that nobody calls committed (`read`), all tokens are that are there when it is first asked for rows.
    """

    def __init__(self, target: HFModel) -> None:
        self.tokens = integers([], target.device)
        self.states = ReadStates(target)
        self._known: int | None = None
        self._told = False

    @property
    def length(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def known(self) -> int:
        """Number of committed tokens; not all of them need be in the session yet."""
        return self.length if self._known is None else self._known

    def text(self, num: int) -> list[int]:
        """The first so many ids."""
        return [int(token) for token in self.tokens[:num].tolist()]

    def read(self, ids: Sequence[int], keeper: Session | None) -> None:
        self._known, self._told = len(ids), True
        self.states.use(keeper)

    @torch.inference_mode()
    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        assert branches is None, "its drafts are chains"
        self.tokens = torch.cat([self.tokens, tokens])
        if rows and self._known is None:
            self._known = self.length
        if not rows:
            self.prefill()
            return self.logits(self.states_of([])), None
        x = self.states_of(range(self.length - rows + 1, self.length + 1))
        return self.logits(x), x if hidden else None

    @torch.inference_mode()
    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self.length, f"cannot truncate to {length} of {self.length} slots"
        assert not slots, "its drafts are chains"
        self.tokens = self.tokens[:length]
        if not self._told:
            self._known = None
        self.forget(length)

    def slots(self) -> object:
        return tuple(self.tokens.tolist())

    @abstractmethod
    def prefill(self) -> None:
        """Compute what the committed tokens that are here allow."""

    @abstractmethod
    def forget(self, length: int) -> None:
        """Drop what depends on tokens after the first `length`."""

    @abstractmethod
    def states_of(self, lengths: Sequence[int]) -> Tensor:
        """The states [R, D] that say what follows the first so many tokens."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """[R, V] of the states x[R, D]."""
