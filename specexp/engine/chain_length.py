"""What `gamma: auto` learns along one output: how often drafted tokens are accepted, and how fast decoding is.

It is a function of the output's own rounds and of costs that were measured before: not of a clock, nor of what else is
decoded. So a prompt and a seed give the same chains alone, in a batch and after a resume.

Tokens that are drafted after a rejected one are drafted again in the next round, from the same draws. What decides
where chains end must not depend on draws of tokens to come, or the output would be biased: acceptances are learnt from
tested tokens alone, and what a round cost counts once the output has passed the end of its chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from specexp.decoding.draft_length import BINS, RelativeCosts, Stopping, bin_of
from specexp.lm.model import Array

# Before anything is tested: the acceptance of any token, and how many tokens, rounds and tokens of a bin that is worth.
ACCEPTANCE, TOKENS, ROUNDS, OF_BIN = 0.9, 8, 2, 2
RETRY = 16


class ChainLength:
    """The lengths of the chains of one output, at most `most` tokens each.

    A token drafted at temperature 0 is expected to be accepted with its probability under the draft. One that was
    drawn may be unlikely under both models, and is expected half way from there to 1.
    """

    def __init__(self, costs: RelativeCosts, most: int, greedy: bool) -> None:
        self._costs, self._most = costs, most
        middles = [(i + 0.5) / BINS for i in range(BINS)]
        self._good = [OF_BIN * (middle if greedy else (1 + middle) / 2) for middle in middles]
        self._tested = [float(OF_BIN)] * BINS
        self._steps = ROUNDS * costs.chain(most // 2, most // 2 + 1)
        self._tokens = self._steps * costs.best_rate(most, ACCEPTANCE)
        self._num_good, self._num_tested = ACCEPTANCE * TOKENS, float(TOKENS)
        self._num_idle = 0
        self._rounds: list[tuple[int, int, float]] = []  # that do not count yet: the end of the chain, tokens, steps
        self._calls = 0  # of the draft in this round
        self._probability: Array | None = None  # [G], of this round's chain

    def begin(self, position: int, most: int) -> Stopping | None:
        """Where the chain of a round ends that begins at this position of the output and has at most `most` tokens;
        None if drafting has been slower than plain decoding: it is then tried again in one round of RETRY."""
        self._calls, self._probability = 0, None
        for end, tokens, steps in self._rounds:
            if end <= position:
                self._tokens, self._steps = self._tokens + tokens, self._steps + steps
        self._rounds = [each for each in self._rounds if each[0] > position]
        rate = self._tokens / self._steps
        if rate < 1:  # of plain decoding
            self._num_idle += 1
            if self._num_idle % RETRY:
                return None
        rate = max(1.0, rate)
        prices = self._costs.prices(self._most, self._num_good / self._num_tested)
        acceptance = [good / tested for good, tested in zip(self._good, self._tested, strict=True)]
        return Stopping([rate * price for price in prices[:most]], acceptance)

    def drafted(self, probability: Array, calls: int) -> None:
        """Note the chain of this round: probability[G] of its tokens under the draft, and the draft calls it took."""
        self._probability, self._calls = probability, calls

    def unread(self) -> list[Array]:
        """What `commit` needs to be read to the host."""
        return [] if self._probability is None else [self._probability]

    def was_read(self, probability: list[float]) -> None:
        """Keep what was read of `unread`."""
        self._probability = probability

    def commit(
        self, position: int, num_tokens: int, num_drafted: int, num_accepted: int, read: Sequence[Sequence[float]]
    ) -> None:
        """Learn from a round: where it began, its emitted, drafted and accepted tokens, and the values of `unread`."""
        if not num_drafted:
            return
        steps = self._costs.chain(self._calls, num_drafted + 1)
        self._rounds.append((position + num_drafted, num_tokens, steps))
        for probabilities in read:
            for i, probability in enumerate(probabilities[: num_accepted + 1]):
                place = bin_of(probability)
                self._good[place] += i < num_accepted
                self._tested[place] += 1
                self._num_good += i < num_accepted
                self._num_tested += 1
        self._calls, self._probability = 0, None

    def fingerprint(self) -> object:
        """With equal ones, later chains are chosen alike."""
        learnt = (*self._good, *self._tested, self._num_good, self._num_tested, self._tokens, self._steps)
        return learnt, tuple(self._rounds), self._num_idle
