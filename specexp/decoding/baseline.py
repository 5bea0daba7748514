"""Plain decoding, one token a call: of the target (the baseline), or of the draft model alone (`draft_only`)."""

from __future__ import annotations

from dataclasses import dataclass

from specexp.decoding.protocol import Role, Round, Score, Scored, Steps
from specexp.decoding.rng import TARGET, Rng
from specexp.decoding.rules import Warp


@dataclass(frozen=True, slots=True)
class Baseline:
    """One call of `model`, one token drawn from its warped distribution, up to the limit."""

    warp: Warp
    model: Role = "target"

    @property
    def models(self) -> tuple[Role, ...]:
        return (self.model,)

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        limit = remaining_tokens
        while remaining_tokens:
            scored: Scored = yield Score(self.model)
            if self.warp.greedy:
                token = self.warp.first(scored.logits)
            else:
                token = rng.pick(self.warp(scored.logits)[0], limit - remaining_tokens, TARGET)[None]
            remaining_tokens = yield Round(token, 1)
