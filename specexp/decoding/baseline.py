"""Plain decoding, one token a call: of the target (the baseline), or of the draft model alone (`draft_only`)."""

from __future__ import annotations

from dataclasses import dataclass

from specexp.decoding.protocol import Role, Round, Score, Scored, Steps
from specexp.decoding.rng import TARGET, Rng
from specexp.decoding.rules import Warp


@dataclass(frozen=True, slots=True)
class Baseline:
    """One call of `model`, one token drawn from its warped distribution, until the room is used up."""

    warp: Warp
    model: Role = "target"

    @property
    def models(self) -> tuple[Role, ...]:
        return (self.model,)

    def steps(self, rng: Rng, room: int) -> Steps:
        whole = room
        while room:
            scored: Scored = yield Score(self.model)
            if self.warp.greedy:
                token = self.warp.first(scored.logits)
            else:
                token = rng.pick(self.warp(scored.logits)[0], whole - room, TARGET)[None]
            room = yield Round(token, 1)
