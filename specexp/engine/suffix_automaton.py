"""Suffix decoding's structure (Oliaro et al. 2411.04975): how often each token followed each earlier substring.

A suffix automaton (Blumer et al. 1985) of sequences that only grow. Its states are the classes of substrings that end
at the same places; n tokens make at most 2 n states. The paper's suffix trees hold the same counts: one of a prompt and
its output, and one of earlier outputs.

The counts are of substrings of limited length, as in the trees of the authors' code (ArcticInference): what is
continued is at most the last `depth` tokens, and a longer match counts as one of `depth` tokens. Within that, every
count is exact. So a token takes some 2 depth steps along the links, however much a text repeats itself, and a search
looks at no more than `depth` suffixes, at each for as many steps as it drafts. (Every suffix of n equal tokens is a
state of its own: with counts of all lengths, n of them took n^2 / 2 steps.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROOT = 0
DEPTH = 64  # tokens of a match that count: the default of the authors' code


@dataclass(frozen=True, slots=True)
class SuffixLengths:
    """How far a suffix is continued: at most `most` tokens, and `factor` for each one that matches, while the product
    of the shares is at least `least`. A match has at least `shortest` tokens."""

    most: int
    factor: float
    least: float
    shortest: int = 1


class SuffixAutomaton:
    """Counts of the substrings of sequences, and the likeliest continuation of each that has at most `depth` tokens."""

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth
        self._next: list[dict[int, int]] = [{}]  # of each state: the states one token further
        self._link = [-1]  # the state of the longest suffix that ends at more places
        self._length = [0]  # of its longest substring
        # Of states with substrings of at most depth + 1 tokens: the places at which these end,
        self._count = [0]
        # and if they have at most depth: how often they were followed, and by which token most often, of equal ones
        # the latest.
        self._followed = [0]
        self._favourite = [-1]
        self._last = ROOT  # the state of the whole sequence
        self._recent = ROOT  # the state of its last depth + 1 tokens

    def begin(self) -> None:
        """Begin another sequence: no substring spans two of them."""
        self._last = self._recent = ROOT

    def append(self, token: int) -> None:
        """Append a token to the latest sequence."""
        whole, before = self._state({}, self._length[self._last] + 1), self._last
        while before >= 0 and token not in self._next[before]:
            self._next[before][token] = whole
            before = self._link[before]
        self._link[whole] = ROOT if before < 0 else self._split(before, token)
        self._last = whole
        followed, self._recent = self._recent, self._within(self._next[self._recent][token], self.depth + 1)
        state = self._recent
        while state > ROOT:
            self._count[state] += 1
            state = self._link[state]
        while followed > ROOT:
            following = self._next[followed]
            times = self._count[following[token]]
            if not self._followed[followed] or times >= self._count[following[self._favourite[followed]]]:
                self._favourite[followed] = token
            self._followed[followed] += 1
            followed = self._link[followed]

    def repeated(self) -> tuple[int, int]:
        """The longest suffix of the latest sequence that occurs elsewhere, too: its state and length."""
        state = max(ROOT, self._link[self._last])
        if self._length[state] > self.depth:
            return self._within(self._recent, self.depth), self.depth
        return state, self._length[state]

    def matched(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest suffix of a matched substring and `token` that occurs: its state and length."""
        while token not in self._next[state]:
            if state == ROOT:
                return ROOT, 0
            state = self._link[state]
            length = self._length[state]
        return self._within(self._next[state][token], self.depth), min(length + 1, self.depth)

    def best(self, state: int, length: int, limits: SuffixLengths) -> tuple[list[int], float]:
        """The likeliest continuation of a substring of `length` tokens in `state`, and what it is worth.

        Each of its suffixes is a candidate. After it, the token that followed most often (of equal ones the latest) is
        taken again and again. The candidate with the largest sum of products of shares wins: the number of tokens that
        would be accepted if the shares were the target's; of equal ones the longest match.
        """
        best: list[int] = []
        highest = 0.0
        while state > ROOT and length >= limits.shortest:
            longest = min(limits.most, max(1, int(limits.factor * length)))
            if highest >= longest:  # a sum of as many shares is not larger
                break
            tokens, score = self._walk(state, longest, limits.least)
            if score > highest:
                best, highest = tokens, score
            state = self._link[state]
            length = self._length[state]
        return best, highest

    def _walk(self, state: int, longest: int, least: float) -> tuple[list[int], float]:
        """The likeliest continuation of a state's substrings, and the sum of its products of shares."""
        tokens: list[int] = []
        product, score = 1.0, 0.0
        while len(tokens) < longest:
            while not self._followed[state] and state > ROOT:  # the end of a sequence: its shorter suffixes go on
                state = self._link[state]
            if state == ROOT:
                break
            token = self._favourite[state]
            following = self._next[state][token]
            product *= self._count[following] / self._followed[state]
            if product < least:
                break
            tokens.append(token)
            score += product
            state = self._within(following, self.depth)
        return tokens, score

    def _within(self, state: int, length: int) -> int:
        """The state of the last `length` tokens of a state's substrings, or of all where these are fewer."""
        while state > ROOT and self._length[self._link[state]] >= length:
            state = self._link[state]
        return state

    def _split(self, before: int, token: int) -> int:
        """The state of `before`'s longest substring and `token`, which occurred before.

        If its state has longer substrings, too, these end at fewer places from now on: it becomes a state of its own.
        """
        longer = self._next[before][token]
        if self._length[longer] == self._length[before] + 1:
            return longer
        own = self._state(dict(self._next[longer]), self._length[before] + 1)
        self._link[own], self._link[longer] = self._link[longer], own
        self._count[own], self._followed[own] = self._count[longer], self._followed[longer]
        self._favourite[own] = self._favourite[longer]
        while before >= 0 and self._next[before].get(token) == longer:
            self._next[before][token] = own
            before = self._link[before]
        return own

    def _state(self, following: dict[int, int], length: int) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._count.append(0)
        self._followed.append(0)
        self._favourite.append(-1)
        return len(self._next) - 1


class SuffixIndex:
    """A sequence that grows, and outputs before it (`earlier`, which must not grow meanwhile)."""

    def __init__(self, earlier: SuffixAutomaton | None = None, depth: int = DEPTH) -> None:
        self._own, self._earlier = SuffixAutomaton(depth), earlier
        self._match = ROOT, 0  # the end of the sequence in `earlier`
        self._size = 0

    def continuation(self, ids: Sequence[int], limits: SuffixLengths) -> list[int]:
        """The likeliest tokens after `ids`, which must extend those of the previous call; none if nothing matches.

        Of equally good continuations the sequence's own wins.
        """
        for token in ids[self._size :]:
            self._own.append(token)
            if self._earlier is not None:
                self._match = self._earlier.matched(*self._match, token)
        self._size = len(ids)
        tokens, score = self._own.best(*self._own.repeated(), limits)
        if self._earlier is not None:
            others, others_score = self._earlier.best(*self._match, limits)
            tokens = others if others_score > score else tokens
        return tokens
