"""Answers `Draft` and `Recall`, and how deep a tree may grow: how many tokens to draft, and which.

The draft's chains grow step by step, with one forward per step for all rows; or a model drafts a whole chain in one
call (`Drafts`).

Shapes: G drafted tokens, V vocabulary, H hidden size, A rows that still draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from array_api_compat import array_namespace, device, to_device

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted, GrowTree, Recall, Role
from specexp.decoding.rng import DRAFT, pick_each
from specexp.decoding.rules import UNIT_TEMPERATURE, without
from specexp.engine.chain_length import ChainLength
from specexp.engine.forwards import feed_requests
from specexp.engine.host_transfer import HostTransfer
from specexp.engine.ngram_lookup import Ngrams, continuation
from specexp.engine.request_state import LogitPeaks, RequestState
from specexp.engine.suffix_automaton import SuffixIndex, SuffixLengths
from specexp.engine.whole_chains import OpenChain, WholeChains, shortened
from specexp.lm.model import Array, DraftsBlocks, Model, Writer


class Drafting:
    """Drafts for requests. With `whole`, a model that can drafts chains in one call, for requests that are decoded one
    at a time (`alone`) or for several together."""

    def __init__(self, models: Mapping[Role, Model], transfer: HostTransfer, whole: bool, alone: bool) -> None:
        self._models, self._transfer = models, transfer
        self._whole = WholeChains(models, transfer, alone) if whole else None
        blocks: object = models.get("draft")
        self._blocks = blocks if isinstance(blocks, DraftsBlocks) else None

    @cached_property
    def _nothing(self) -> Array:
        """An empty array of tokens on the target's device, where drafts are verified."""
        return self._models["target"].ids([])

    def depth(self, state: RequestState, ask: GrowTree) -> int:
        """How deep a tree may grow."""
        return self._max_draft_length(state, ask.max_depth, ask.reserve)

    def recall(self, state: RequestState, ask: Recall) -> Drafted:
        """The continuation found in a text, or in the sequence itself: one-hot."""
        most = max(0, min(ask.gamma, state.remaining_tokens - ask.reserve))
        if ask.text is not None:
            tokens = continuation(state.ids, ask.text, most)
        elif ask.suffix is not None:
            state.suffixes = state.suffixes or SuffixIndex(state.earlier)
            limits = SuffixLengths(most, ask.suffix.factor, ask.suffix.min_probability, ask.min_match)
            tokens = state.suffixes.continuation(state.ids, limits)
        else:
            state.ngrams = state.ngrams or Ngrams(ask.max_ngram)
            tokens = state.ngrams.continuation(state.ids, most, ask.min_match)
        return self._one_hot(state, tokens)

    def _one_hot(self, state: RequestState, ids: Sequence[int]) -> Drafted:
        """Host ids as tokens that were certain, as far as they may be emitted there."""
        position = len(state.ids) - state.num_prompt
        ids = ids[: next((i for i, each in enumerate(ids) if each in state.end.banned(position + i)), len(ids))]
        model = self._models["target"]
        tokens = model.ids(ids)
        xp = array_namespace(tokens)
        vocabulary = xp.arange(model.vocab_size, device=device(tokens))
        return Drafted(tokens, xp.astype(tokens[:, None] == vocabulary[None, :], xp.float32))

    def draft(self, asked: Sequence[tuple[RequestState, Draft]]) -> list[Drafted]:
        """The draft's chains, for asks that differ in gamma alone."""
        ask = asked[0][1]
        if isinstance(asked[0][0].contexts["draft"].session, Writer):
            return [self._write(state, each) for state, each in asked]
        chains = [self._begin(state, each) for state, each in asked]
        if (whole := self._draft_whole(chains, [each for _, each in asked])) is not None:
            return whole
        if self._blocks is not None:
            return [self._block(self._blocks, chain, ask) for chain in chains]
        step, greedy, model = 0, ask.warp.greedy, self._models["draft"]
        while going := [chain for chain in chains if step < chain.length]:
            fed = [(chain.tokens[-1] if chain.tokens else None, None, ask.hidden) for chain in going]
            result = feed_requests(model, "draft", [chain.state for chain in going], fed)
            logits = without(_joined([_last(rows) for rows, _ in result]), [chain.banned(step) for chain in going])
            q = logits if greedy else ask.warp(logits)
            peaks = array_namespace(logits).max(logits, axis=-1)
            # A one-hot row needs no draw, and its token says what q is.
            picks = ask.warp.first(logits) if greedy else _draw(going, q, step)
            for i, (chain, (_, hidden_states)) in enumerate(zip(going, result, strict=True)):
                chain.tokens.append(_row(picks, i))
                chain.peaks.append(_row(peaks, i))
                if not greedy or ask.min_draft_probability or ask.costs or ask.keep_q:
                    chain.rows.append(_row(q, i))
                if hidden_states is not None:
                    chain.hidden.append(_last(hidden_states))
            step += 1
            if ask.min_draft_probability or ask.costs:
                self._stop(ask, going, step)
        if ask.feed_last_token and (behind := [chain for chain in chains if chain.length]):
            last = [(chain.tokens[-1], None, True) for chain in behind]
            for chain, (_, hidden_states) in zip(
                behind, feed_requests(model, "draft", [c.state for c in behind], last), strict=True
            ):
                chain.hidden.append(hidden_states)
        return [self._drafted(chain, ask) for chain in chains]

    def _begin(self, state: RequestState, ask: Draft) -> _Chain:
        """An empty chain with its greatest length."""
        length = self._max_draft_length(state, ask.gamma, ask.reserve, ask.feed_last_token)
        stopping = None
        if ask.costs is not None:
            state.chain_length = state.chain_length or ChainLength(ask.costs, ask.gamma, ask.warp.greedy)
            stopping = state.chain_length.begin(len(state.ids) - state.num_prompt, length)
            length = 0 if stopping is None else length
        return _Chain(state, length, ask.by_round, stopping)

    def _max_draft_length(self, state: RequestState, most: int, reserve: int, feed_last_token: bool = False) -> int:
        """The least of `most`, the remaining tokens less `reserve`, and the tokens that fit the draft's context."""
        # The last token is fed only if its hidden state is needed: otherwise it takes no slot.
        fits = state.contexts["draft"].room + (not feed_last_token)
        return max(0, min(most, state.remaining_tokens - reserve, fits))

    def _draft_whole(self, chains: Sequence[_Chain], asks: Sequence[Draft]) -> list[Drafted] | None:
        """The chains in one call of the model; None if it does not support these asks."""
        drawn = [(chain, ask) for chain, ask in zip(chains, asks, strict=True) if chain.length]
        # A whole chain in one call has no ids that are banned.
        if self._whole is None or not drawn or any(chain.banned(0) for chain, _ in drawn):
            return None
        ask = max((ask for _, ask in drawn), key=lambda each: each.gamma)
        started = [OpenChain(chain.state, chain.length, chain.position, chain.stopping) for chain, _ in drawn]
        if (result := self._whole.draft(started, ask)) is None:
            return None
        whole = iter(result)
        return [next(whole) if chain.length else self._drafted(chain, ask) for chain in chains]

    def _block(self, model: DraftsBlocks, chain: _Chain, ask: Draft) -> Drafted:
        """The chain in one forward of the model."""
        state, length = chain.state, chain.length
        if not length:
            return self._drafted(chain, ask)
        feed = state.contexts["draft"].plan(None, None, ask.hidden)
        banned = [chain.banned(step) for step in range(length)]
        result = model.draft_block(feed, ask, length, state.rng, chain.position, banned)
        if result.num_drafted is not None:
            length = int(self._transfer.read([result.num_drafted])[0][0])
            result = shortened(result, length, ask)
        state.fed("draft", feed.tokens.shape[0])
        place = device(self._nothing)
        q = None if result.q is None else to_device(result.q, place)
        block = Drafted(to_device(result.tokens, place), q, None, to_device(result.peaks, place))
        state.peaks.append(LogitPeaks("draft", block.peaks, drafts=True))
        return block

    def _write(self, state: RequestState, ask: Draft) -> Drafted:
        """The tokens of text that the draft writes in its own tokens: one-hot."""
        context = state.contexts["draft"]
        assert isinstance(context.session, Writer)
        count = self._max_draft_length(state, ask.gamma, ask.reserve)
        tokens, positions = context.session.write(count, ask.gamma) if count else ([], [])
        self._transfer.num_reads += bool(positions)
        context.wrote(positions)
        for each in positions:
            state.fed("draft", each)
        return self._one_hot(state, tokens)

    def _stop(self, ask: Draft, chains: Sequence[_Chain], step: int) -> None:
        """End the chains whose last token is too unlikely, or after which no longer chain pays; reads the
        probabilities of tokens that another may follow to the host."""
        rows, tokens = _joined([c.rows[-1] for c in chains]), _joined([c.tokens[-1] for c in chains])
        probability = UNIT_TEMPERATURE(rows) if ask.warp.greedy else rows
        chosen = array_namespace(rows).take_along_axis(probability, tokens[:, None], axis=-1)[:, 0]
        for i, chain in enumerate(chains):
            chain.probability.append(_row(chosen, i))
        if going := [chain for chain in chains if step < chain.length]:
            (result,) = self._transfer.read([_joined([chain.probability[-1] for chain in going])])
            for chain, value in zip(going, result, strict=True):
                if value < ask.min_draft_probability or not chain.goes_on(value):
                    chain.length = len(chain.tokens)

    def _drafted(self, chain: _Chain, ask: Draft) -> Drafted:
        # Drafts are verified on the target's device.
        place = device(self._nothing)
        if not chain.tokens:
            xp = array_namespace(self._nothing)
            return Drafted(
                self._nothing, xp.zeros((0, self._models["draft"].vocab_size), dtype=xp.float32, device=place)
            )
        chain.state.peaks.append(LogitPeaks("draft", to_device(_joined(chain.peaks), place), drafts=True))
        if ask.costs is not None and chain.state.chain_length is not None:
            probability = to_device(_joined(chain.probability), place)
            chain.state.chain_length.drafted(probability, len(chain.tokens) + ask.feed_last_token)
        q = None if ask.warp.greedy else to_device(_joined(chain.rows), place)
        if ask.keep_q and ask.warp.greedy:
            q = UNIT_TEMPERATURE(to_device(_joined(chain.rows), place))
        hidden = to_device(_joined(chain.hidden), place) if chain.hidden else None
        return Drafted(to_device(_joined(chain.tokens), place), q, hidden)


class _Chain:
    """A chain being drafted."""

    __slots__ = (
        "hidden", "length", "peaks", "position", "probability", "rng", "rows", "state", "stopping", "survival", "tokens"
    )  # fmt: skip

    def __init__(self, state: RequestState, length: int, by_round: bool, stopping: Stopping | None) -> None:
        self.state, self.length, self.stopping = state, length, stopping
        self.position = len(state.ids) - state.num_prompt
        self.rng = state.rng.of_round(self.position) if by_round else state.rng
        self.tokens: list[Array] = []  # [1] each
        self.peaks: list[Array] = []  # [1] each: the largest logit of the row it was drawn from
        self.rows: list[Array] = []  # q [1, V] each; at temperature 0, logits
        self.hidden: list[Array] = []
        self.probability: list[Array] = []  # [1] each: of the token under the draft, for chains that end early
        self.survival = 1.0  # the predicted probability that every token is accepted

    def banned(self, step: int) -> frozenset[int]:
        """The ids that may not be emitted at this place of the chain."""
        return self.state.end.banned(self.position + step)

    def goes_on(self, probability: float) -> bool:
        """True unless no longer chain pays after the last token, which has this probability."""
        if self.stopping is None:
            return True
        self.survival *= self.stopping.accepted(probability)
        return self.stopping.goes_on(len(self.tokens), self.survival)


def _draw(chains: Sequence[_Chain], q: Array, step: int) -> Array:
    """tokens[A], each drawn from its row of q[A, V] by its request's rng."""
    return pick_each([chain.rng for chain in chains], q, [chain.position + step for chain in chains], DRAFT)


def _last(rows: Array) -> Array:
    return rows if rows.shape[0] == 1 else rows[-1:]


def _row(rows: Array, i: int) -> Array:
    return rows if rows.shape[0] == 1 else rows[i : i + 1]


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts)
