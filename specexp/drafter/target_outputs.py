"""What a head is trained on."""
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass

@dataclass(frozen=True, slots=True)
class TargetOutput:
    """A prompt and the target's own output for it, as ids; `sampled` or greedy."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    sampled: bool

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.tokens]
