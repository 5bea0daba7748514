"""Suffix decoding's structure (Oliaro et al. 2411.04975): how often each token followed each earlier substring.

A suffix automaton (Blumer et al. 1985) of a sequence that only grows. Its states are the classes of substrings that end
at the same places; n tokens make fewer than 2 n states, so that no match length has to be limited. The paper's suffix
tree holds the same counts.
"""

from __future__ import annotations

from collections.abc import Sequence

ROOT = 0


class SuffixAutomaton:
    """Counts of the substrings of a sequence, and the likeliest continuation of its end."""

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]  # of each state: the states one token further
        self._link = [-1]  # the state of the longest suffix that ends at more places
        self._length = [0]  # of its longest substring
        self._count = [0]  # places at which its substrings end
        self._latest = [-1]  # the last of these places
        self._last = ROOT  # the state of the whole sequence
        self._size = 0

    def continuation(self, ids: Sequence[int], most: int, factor: float, least: float, shortest: int = 1) -> list[int]:
        """The likeliest tokens after `ids`, at most `most`, which must extend those of the previous call.

        Each suffix of `ids` with at least `shortest` tokens that occurred before is a candidate. After it, the token
        that followed most often (of equal ones the latest) is taken again and again, up to `factor` tokens for each one
        that matches, while the product of their shares is at least `least`. The candidate with the largest sum of these
        products wins: the number of tokens that would be accepted if the shares were the target's; of equal ones the
        longest match.
        """
        for token in ids[self._size :]:
            self._append(token)
        best: list[int] = []
        highest, state = 0.0, self._link[self._last]
        while state > ROOT and self._length[state] >= shortest:
            longest = min(most, max(1, int(factor * self._length[state])))
            if highest >= longest:  # a sum of as many shares is not larger
                break
            tokens, score = self._walk(state, longest, least)
            if score > highest:
                best, highest = tokens, score
            state = self._link[state]
        return best

    def _walk(self, state: int, longest: int, least: float) -> tuple[list[int], float]:
        """The likeliest continuation of a state's substrings, and the sum of its products of shares."""
        tokens: list[int] = []
        product, score = 1.0, 0.0
        while len(tokens) < longest:
            # At the end of the sequence, its shorter suffixes go on, which repeats a period. The last token alone does:
            # it occurred before, or there would be no candidate.
            while not self._next[state]:
                state = self._link[state]
            following = self._next[state]
            token = max(following, key=lambda each: (self._count[following[each]], self._latest[following[each]]))
            product *= self._count[following[token]] / sum(self._count[each] for each in following.values())
            if product < least:
                break
            tokens.append(token)
            score += product
            state = following[token]
        return tokens, score

    def _append(self, token: int) -> None:
        whole, before = self._state({}, self._length[self._last] + 1), self._last
        while before >= 0 and token not in self._next[before]:
            self._next[before][token] = whole
            before = self._link[before]
        if before < 0:
            self._link[whole] = ROOT
        else:
            self._link[whole] = self._split(before, token)
        state = whole
        while state > ROOT:
            self._count[state] += 1
            self._latest[state] = self._size
            state = self._link[state]
        self._last = whole
        self._size += 1

    def _split(self, before: int, token: int) -> int:
        """The state of the longest suffix that the sequence had before: `before`'s longest substring and `token`.

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
