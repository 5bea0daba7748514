"""Chains that a model drafts in one call: that of a request alone (`Drafts`), or those of several together.

Where a chain ends by what it drafts, the device decides, and the host reads how many tokens all of them have at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from array_api_compat import device, to_device

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted, Role
from specexp.engine.host_transfer import HostTransfer
from specexp.engine.request_state import LogitPeaks, RequestState
from specexp.lm.model import ChainStart, Drafts, DraftsTogether, Feed, Model


@dataclass(frozen=True, slots=True, eq=False)
class OpenChain:
    """A chain to draft for a request: of at most `length` >= 1 tokens, the first one at `position` of the output."""

    state: RequestState
    length: int
    position: int
    stopping: Stopping | None


class WholeChains:
    """Drafts with the model's own calls, if it has them; `alone` says that requests are decoded one at a time."""

    def __init__(self, models: Mapping[Role, Model], transfer: HostTransfer, alone: bool) -> None:
        self._models, self._transfer = models, transfer
        draft: object = models.get("draft")
        self._alone = draft if alone and isinstance(draft, Drafts) else None
        self._together = draft if not alone and isinstance(draft, DraftsTogether) else None

    @cached_property
    def _place(self) -> Any:
        """The target's device, where drafts are verified."""
        return device(self._models["target"].ids([]))

    def draft(self, chains: Sequence[OpenChain], ask: Draft) -> list[Drafted] | None:
        """The chain of each request, none of which has banned ids; None if the model does not draft them so."""
        if self._alone is not None:
            (chain,) = chains
            if not self._alone.drafts(ask, chain.state.rng):
                return None
            feeds = self._feeds(chains, ask)
            drafted = [self._alone.draft(
                feeds[0], ask, chain.length, chain.state.rng, chain.position, chain.stopping
            )]  # fmt: skip
        elif self._together is not None:
            sessions = [chain.state.contexts["draft"].session for chain in chains]
            if not self._together.drafts_together(ask, sessions, [chain.state.rng for chain in chains]):
                return None
            starts = [ChainStart(chain.length, chain.state.rng, chain.position, chain.stopping) for chain in chains]
            feeds = self._feeds(chains, ask)
            drafted = self._together.draft_together(feeds, ask, starts)
        else:
            return None
        drafted = self._sized(drafted, ask)
        for chain, feed, each in zip(chains, feeds, drafted, strict=True):
            self._count(chain, feed, each, ask)
        return [self._on_targets_device(chain, each, ask) for chain, each in zip(chains, drafted, strict=True)]

    def _feeds(self, chains: Sequence[OpenChain], ask: Draft) -> list[Feed]:
        return [chain.state.contexts["draft"].plan(None, None, ask.hidden) for chain in chains]

    def _sized(self, drafted: list[Drafted], ask: Draft) -> list[Drafted]:
        """The chains as long as they are, for which those that ended early are read."""
        unread = [each.num_drafted for each in drafted if each.num_drafted is not None]
        if not unread:
            return drafted
        numbers = iter(self._transfer.read(unread))
        return [each if each.num_drafted is None else shortened(each, int(next(numbers)[0]), ask) for each in drafted]

    def _count(self, chain: OpenChain, feed: Feed, drafted: Drafted, ask: Draft) -> None:
        more = drafted.tokens.shape[0] - 1 + ask.feed_last_token
        chain.state.contexts["draft"].advance(more)
        for positions in (feed.num_tokens, *[1] * more):
            chain.state.fed("draft", positions)

    def _on_targets_device(self, chain: OpenChain, drafted: Drafted, ask: Draft) -> Drafted:
        """The chain where it is verified. Has its logits watched, and what it teaches about lengths noted."""
        state, place = chain.state, self._place
        q, hidden, peaks, probability = (
            None if part is None else to_device(part, place)
            for part in (drafted.q, drafted.hidden, drafted.peaks, drafted.probability)
        )
        state.peaks.append(LogitPeaks("draft", peaks, drafts=True))
        if state.chain_length is not None and probability is not None:
            state.chain_length.drafted(probability, drafted.tokens.shape[0] + ask.feed_last_token)
        return Drafted(to_device(drafted.tokens, place), q, hidden, peaks)


def shortened(chain: Drafted, length: int, ask: Draft) -> Drafted:
    """The first `length` tokens of a chain."""
    q, peaks, probability = (
        None if part is None else part[:length] for part in (chain.q, chain.peaks, chain.probability)
    )
    hidden = None if chain.hidden is None else chain.hidden[: length + ask.feed_last_token]
    return replace(chain, tokens=chain.tokens[:length], q=q, hidden=hidden, peaks=peaks, probability=probability)
