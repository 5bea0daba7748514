"""The narrow boundary behind which every language model sits: the numpy toy and Hugging Face models alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Array = Any


class Session(Protocol):
    """One sequence in one model's KV cache: a row of slots that grows at its end and can be cut back."""

    @property
    def length(self) -> int:
        """Slots in the cache."""
        ...

    def feed(self, tokens: Array, rows: int, hidden: bool = False) -> tuple[Array, Array | None]:
        """Append tokens[N] at positions length .. length + N - 1, each seeing all before it.

        Returns what follows the last `rows` of them: logits[rows, V] and, if asked, the last layer after its norm
        [rows, H]. With rows = 0 the logits are empty.
        """
        ...

    def crop(self, length: int) -> None:
        """Forget every slot from `length` on."""
        ...

    def slots(self) -> object:
        """What the cache holds, as something that can be compared and hashed: equal means decoding goes on alike."""
        ...


class Model(Protocol):
    """A causal language model."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context(self) -> int:
        """The most positions a sequence may have."""
        ...

    def session(self) -> Session:
        """An empty cache."""
        ...

    def ids(self, tokens: Sequence[int]) -> Array:
        """Host token ids as an integer array on the model's device."""
        ...

    def wait(self) -> None:
        """Return once the device has done all it was asked for; clocks read around this."""
        ...
