"""Speculative sampling: a proposer drafts a chain, the target checks it in one call, a rule accepts a prefix of it.

One loop for every chain method. What is proposed and what is accepted are arguments: a proposer (the draft model, a
given text whose continuation is reused, or the sequence's own n-grams), and a rule, which may accept tokens that the
lossless test of `rules.verify` rejects (lossy_rules.py has those that do).

Expected tokens per target call at acceptance alpha: (1 - alpha**(gamma + 1)) / (1 - alpha).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from array_api_compat import array_namespace

from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.protocol import (
    Array,
    Ask,
    Draft,
    Drafted,
    Needs,
    Recall,
    Role,
    Round,
    Score,
    Scored,
    Steps,
    SuffixLimits,
    Trial,
)
from specexp.decoding.rng import Rng
from specexp.decoding.rules import Warp, one_hot, verify, verify_block, verify_greedy, verify_match

Proposal = Generator[Ask, Any, Drafted]  # a proposer's asks, and at last its drafts
Verification = Literal["token", "block", "match"]


class Proposer(Protocol):
    """Proposes the chain of a round."""

    @property
    def models(self) -> tuple[Role, ...]: ...

    def propose(self, warp: Warp, reserve: int, needs: Needs) -> Proposal:
        """Draft for these distributions, so that the chain and `reserve` more tokens fit what is left."""
        ...


class Rule(Protocol):
    """Decides which drafted tokens are accepted although the lossless test rejects them.

    One that has a `recordable`, and it is true, may be recorded (`Decision`): it must be a hashable pure function.
    """

    @property
    def needs(self) -> Needs: ...

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        """accepted_anyway[G] of bools, or None for none."""
        ...


@dataclass(frozen=True, slots=True)
class DraftModel:
    """The draft model's own chain of at most gamma tokens; a token below `min_draft_probability` ends it.

    It is drawn at `temperature`: any is exact, since q is what it was drawn from. Where the target's is 0, nothing is
    drawn. With `costs` it ends where no longer chain pays.
    """

    gamma: int
    min_draft_probability: float = 0.0
    temperature: float | None = None  # None is the target's
    costs: RelativeCosts | None = None

    @property
    def models(self) -> tuple[Role, ...]:
        return ("draft",)

    def propose(self, warp: Warp, reserve: int, needs: Needs) -> Proposal:
        drafted: Drafted = yield Draft(
            self.gamma, warp.of_draft(self.temperature), reserve, needs.draft, needs.feed_last_token,
            self.min_draft_probability, needs.by_round, self.costs, needs.draft_q and warp.greedy,
        )  # fmt: skip
        return drafted


@dataclass(frozen=True, slots=True)
class Replay:
    """The continuation found in `text`, at most gamma tokens; where none is found, the other proposer's chain."""

    text: tuple[int, ...]
    gamma: int
    otherwise: DraftModel

    @property
    def models(self) -> tuple[Role, ...]:
        return self.otherwise.models

    def propose(self, warp: Warp, reserve: int, needs: Needs) -> Proposal:
        drafted: Drafted = yield Recall(self.text, self.gamma, reserve)
        if not drafted.tokens.shape[0]:
            drafted = yield from self.otherwise.propose(warp, reserve, needs)
        return drafted


@dataclass(frozen=True, slots=True)
class Lookup:
    """Prompt lookup (Saxena 2023): what followed the last tokens, at most `max_ngram`, where they occurred before.

    It needs no draft model. Without an earlier occurrence nothing is proposed, and the round is a plain step.
    """

    gamma: int
    max_ngram: int = 3
    min_match: int = 1

    @property
    def models(self) -> tuple[Role, ...]:
        return ()

    def propose(self, warp: Warp, reserve: int, needs: Needs) -> Proposal:
        drafted: Drafted = yield Recall(None, self.gamma, reserve, self.max_ngram, min_match=self.min_match)
        return drafted


@dataclass(frozen=True, slots=True)
class Suffix:
    """Suffix decoding (Oliaro et al. 2411.04975): what followed the suffixes of the sequence most often before.

    It needs no draft model. Its drafts are as long as what was seen before allows (`limits`), at most gamma tokens.
    """

    gamma: int
    limits: SuffixLimits
    min_match: int = 1

    @property
    def models(self) -> tuple[Role, ...]:
        return ()

    def propose(self, warp: Warp, reserve: int, needs: Needs) -> Proposal:
        drafted: Drafted = yield Recall(None, self.gamma, reserve, suffix=self.limits, min_match=self.min_match)
        return drafted


@dataclass(frozen=True, slots=True)
class InTurn:
    """The chain of the first proposer that has something to say; each round is counted under that proposer's name.

    Who that is depends on nothing that is drawn in the round: the output keeps its distribution.
    """

    proposers: Mapping[str, Proposer]

    @property
    def models(self) -> tuple[Role, ...]:
        return tuple(dict.fromkeys(role for each in self.proposers.values() for role in each.models))

    def propose(self, warp: Warp, reserve: int, needs: Needs) -> Proposal:
        for name, each in self.proposers.items():
            drafted = yield from each.propose(warp, reserve, needs)
            if drafted.tokens.shape[0]:
                return replace(drafted, source=name)
        return drafted


@dataclass(frozen=True, slots=True)
class Lossless:
    """Accepts only what the lossless test accepts: the output distribution is the target's."""

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def recordable(self) -> bool:
        return True

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        return None


@dataclass(frozen=True, slots=True)
class ChainDecision:
    """Verifies a drafted chain, as `Chain` says (`Decision`)."""

    rule: Rule
    warp: Warp
    models: tuple[Role, ...]
    bonus: bool
    verification: Verification

    @property
    def by_block(self) -> bool:
        return self.verification == "block" and not self.warp.greedy

    @property
    def recordable(self) -> bool:
        return type(self.warp) is Warp and getattr(self.rule, "recordable", False)

    @property
    def takes_padding(self) -> bool:
        return not self.by_block and not self.rule.needs.all_rows

    @property
    def reads(self) -> tuple[str, ...]:
        needs = self.rule.needs
        parts = {"q": needs.draft_q or not self.warp.greedy, "hidden": needs.draft or needs.feed_last_token}
        return tuple(name for name, is_read in parts.items() if is_read)

    def __call__(self, scored: Scored, proposed: Drafted, rng: Rng, position: Array | int) -> Round:
        drafted, padded = proposed, proposed.num_drafted
        accepted_anyway = self.rule.accept_anyway(drafted, scored)
        if self.warp.greedy:
            verdict = verify_greedy(scored.logits, drafted.tokens, accepted_anyway, padded)
        else:
            p = self.warp(scored.logits)
            q = one_hot(drafted.tokens, p) if drafted.q is None else drafted.q
            if self.verification == "match":
                verdict = verify_match(p, drafted.tokens, rng, position, padded)
            elif self.by_block:
                assert accepted_anyway is None, "a rule that accepts single tokens has no block verification"
                assert padded is None, "a block has no padding"
                verdict = verify_block(p, q, drafted.tokens, rng, position)
            else:
                verdict = verify(p, q, drafted.tokens, accepted_anyway, rng, position, padded)
        num_drafted = drafted.tokens.shape[0] if padded is None else padded[0]
        num_tokens = verdict.num_accepted + 1
        if drafted.tokens.shape[0] and not self.bonus:
            xp = array_namespace(drafted.tokens)
            num_tokens = xp.clip(num_tokens, None, num_drafted if padded is None else xp.clip(num_drafted, 1, None))
        return Round(
            verdict.tokens,
            num_tokens,
            dict.fromkeys(self.models, verdict.num_accepted),
            {
                "num_accepted": verdict.num_accepted,
                "num_drafted": num_drafted,
                "judged": verdict.judged,
                "overlap": verdict.overlap,
            },
            drafted.source,
            reads_all=self.by_block or self.rule.needs.all_rows,
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """Drafts a chain, verifies it, commits the accepted tokens and one more (without `bonus`, none after a full
    chain).

    `verification` tests token by token, or the chain as a block, or compares each token with the target's own draw: a
    lossy rule, which accepts single tokens, goes with the first alone.
    """

    proposer: Proposer
    rule: Rule
    warp: Warp
    bonus: bool = True
    verification: Verification = "token"

    @property
    def models(self) -> tuple[Role, ...]:
        return ("target", *self.proposer.models)

    @property
    def decision(self) -> ChainDecision:
        return ChainDecision(self.rule, self.warp, self.models, self.bonus, self.verification)

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        limit, decision = remaining_tokens, self.decision
        needs = replace(self.rule.needs, by_round=decision.by_block)
        while remaining_tokens:
            drafted = yield from self.proposer.propose(self.warp, int(self.bonus), needs)
            trial = Trial(decision, drafted, rng, limit - remaining_tokens)
            scored: Scored = yield Score("target", drafted.tokens, hidden=needs.target, trial=trial)
            remaining_tokens = yield trial(scored)
