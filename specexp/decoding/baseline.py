"""Plain decoding, one token a call: of the target (the baseline), or of the draft model alone (`draft_only`)."""

from __future__ import annotations

from dataclasses import dataclass

from specexp.decoding.protocol import Array, Role, Round, Score, Scored, Steps, Trial
from specexp.decoding.rng import TARGET, Rng
from specexp.decoding.rules import Warp


@dataclass(frozen=True, slots=True)
class PlainDecision:
    """Commits the token that is drawn after the last one (`Decision`)."""

    warp: Warp

    @property
    def recordable(self) -> bool:
        return type(self.warp) is Warp

    @property
    def takes_padding(self) -> bool:
        return False  # it has no drafts

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def __call__(self, scored: Scored, proposed: None, rng: Rng, position: Array | int) -> Round:
        if self.warp.greedy:
            return Round(self.warp.first(scored.logits), 1)
        return Round(rng.pick(self.warp(scored.logits)[0], position, TARGET)[None], 1)


@dataclass(frozen=True, slots=True)
class Baseline:
    """One call of `model`, one token drawn from its warped distribution, up to the limit."""

    warp: Warp
    model: Role = "target"

    @property
    def models(self) -> tuple[Role, ...]:
        return (self.model,)

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        limit, step = remaining_tokens, PlainDecision(self.warp)
        while remaining_tokens:
            trial = Trial(step, None, rng, limit - remaining_tokens)
            scored: Scored = yield Score(self.model, trial=trial)
            remaining_tokens = yield trial(scored)
