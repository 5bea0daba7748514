"""Suffix decoding's structure (Oliaro et al. 2411.04975): how often each token followed each earlier substring.

A suffix automaton (Blumer et al. 1985) of sequences that only grow. Its states are the classes of substrings that end
at the same places; n tokens make at most 2 n states, so that no match length has to be limited. The paper's suffix
trees hold the same counts: one of a prompt and its output, and one of earlier outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROOT = 0


@dataclass(frozen=True, slots=True)
class SuffixLengths:
    """How far a suffix is continued: at most `most` tokens, and `factor` for each one that matches, while the product
    of the shares is at least `least`. A match has at least `shortest` tokens."""

    most: int
    factor: float
    least: float
    shortest: int = 1


class SuffixAutomaton:
    """Counts of the substrings of sequences, and the likeliest continuation of each."""

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]  # of each state: the states one token further
        self._link = [-1]  # the state of the longest suffix that ends at more places
        self._length = [0]  # of its longest substring
        self._count = [0]  # places at which its substrings end
        self._latest = [-1]  # the last of these places
        self._last = ROOT  # the state of the whole sequence
        self._size = 0

    def begin(self) -> None:
        """Begin another sequence: no substring spans two of them."""
        self._last = ROOT

    def append(self, token: int) -> None:
        """Append a token to the latest sequence."""
        whole, before = self._state({}, self._length[self._last] + 1), self._last
        while before >= 0 and token not in self._next[before]:
            self._next[before][token] = whole
            before = self._link[before]
        self._link[whole] = ROOT if before < 0 else self._split(before, token)
        state = whole
        while state > ROOT:
            self._count[state] += 1
            self._latest[state] = self._size
            state = self._link[state]
        self._last = whole
        self._size += 1

    def repeated(self) -> tuple[int, int]:
        """The longest suffix of the latest sequence that occurs elsewhere, too: its state and length."""
        state = max(ROOT, self._link[self._last])
        return state, self._length[state]

    def matched(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest suffix of a matched substring and `token` that occurs: its state and length."""
        while token not in self._next[state]:
            if state == ROOT:
                return ROOT, 0
            state = self._link[state]
            length = self._length[state]
        return self._next[state][token], length + 1

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
            while not self._next[state] and state > ROOT:  # the end of a sequence: its shorter suffixes go on
                state = self._link[state]
            if state == ROOT:
                break
            following = self._next[state]
            token = max(following, key=lambda each: (self._count[following[each]], self._latest[following[each]]))
            product *= self._count[following[token]] / sum(self._count[each] for each in following.values())
            if product < least:
                break
            tokens.append(token)
            score += product
            state = following[token]
        return tokens, score

    def _split(self, before: int, token: int) -> int:
        """The state of `before`'s longest substring and `token`, which occurred before.

        If its state has longer substrings, too, these end at fewer places from now on: it becomes a state of its own.
        """
        longer = self._next[before][token]
        if self._length[longer] == self._length[before] + 1:
            return longer
        own = self._state(dict(self._next[longer]), self._length[before] + 1)
        self._link[own], self._link[longer] = self._link[longer], own
        self._count[own], self._latest[own] = self._count[longer], self._latest[longer]
        while before >= 0 and self._next[before].get(token) == longer:
            self._next[before][token] = own
            before = self._link[before]
        return own

    def _state(self, following: dict[int, int], length: int) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._count.append(0)
        self._latest.append(-1)
        return len(self._next) - 1


class SuffixIndex:
    """A sequence that grows, and outputs before it (`earlier`, which must not grow meanwhile)."""

    def __init__(self, earlier: SuffixAutomaton | None = None) -> None:
        self._own, self._earlier = SuffixAutomaton(), earlier
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
