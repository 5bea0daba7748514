"""Randomness as an argument: the noise of a draw is a hash of what it is for, not of when it is made.

A draw is keyed by (seed, prompt, turn, position, purpose) and, where it chooses a token, by the token. So the same
prompt gives the same tokens alone, in any batch, after a resume, on numpy and on torch; and two methods draw the same
noise for the same purpose. Choosing is an exponential race, argmin(E_x / p_x) with E_x ~ Exp(1): exact, needs no
normalised p, and is stable where cached and full forwards differ in the last bits (an inverse CDF would amplify them).

The noise is 32 bits wide: a choice between outcomes is biased by no more than 2**-32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from specexp.decoding.rules import is_greedy

Array = Any

DRAFT, ACCEPT, RESIDUAL, TARGET = 1, 2, 3, 4  # purposes; the baseline, SpecExec and the bonus token share TARGET
_MASK = 0xFFFFFFFF
_BLOCK, _BLOCK_ROWS, _BLOCKS = 1 << 16, 16, 12  # values and positions of noise made at a time; blocks kept
_ROUND_ROWS = 8  # positions of a round's own noise, of which no later round needs the rest


class Rng(Protocol):
    """What a decoder draws from. Positions count the generated tokens, from 0. They are ints, or in a recording, whose
    rng is an `ArrayRng`, arrays[1]."""

    def pick(self, weights: Array, position: Array | int, purpose: int) -> Array:
        """A token id (0-d array) drawn in proportion to weights[V], which need not be normalised."""
        ...

    def sample_next(
        self, weights: Array, position: Array | int, num_accepted: Array, num_drafted: Array | int
    ) -> Array:
        """The token after `num_accepted` drafts, counted from `position`: RESIDUAL, or TARGET when all were
        accepted."""
        ...

    def accept_prefix(self, prob: Array, accepted_anyway: Array | None, position: Array | int) -> tuple[Array, Array]:
        """Test prob[G] in order, from `position` on, up to the first that neither passes nor is accepted anyway.

        Returns (num_accepted, a 0-d integer array; passed[G], bools that hold up to and with the first rejection).
        """
        ...

    def accept_longest(self, prob: Array, position: Array | int) -> Array:
        """Test every prob[G], from `position` on: one more than the index of the last that passes, or 0 (0-d array)."""
        ...

    def target_draws(self, weights: Array, position: Array | int) -> Array:
        """tokens[R], each drawn from its row of weights[R, V] at `position`, `position` + 1, ...: TARGET, as plain
        decoding draws there."""
        ...

    def of_round(self, start: Array | int) -> Rng:
        """An rng whose draws no other round shares: `start` is the position of the round's first token.

        For rules whose decision depends on draws for positions that the next round draws for again: what is known of
        these draws by then would bias them.
        """
        ...


@dataclass(frozen=True, slots=True)
class HashRng:
    """Counter-based rng of one prompt's turn."""

    key: tuple[Array, Array]  # two 32-bit integers; as arrays[1], they may change between replays of a CUDA graph
    _first: int = 0  # the position at which a block of noise begins
    _rows: int = _BLOCK_ROWS
    _blocks: dict[tuple[Any, ...], Array] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, seed: int, prompt_id: str, turn: int = 0) -> HashRng:
        digest = hashlib.blake2b(f"{seed}/{turn}/{prompt_id}".encode(), digest_size=8).digest()
        return cls((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")))

    def pick(self, weights: Array, position: Array | int, purpose: int) -> Array:
        (noise,) = self._noise(weights, position, 1, purpose)
        return _race(weights, noise)

    def pick_at(self, weights: Array, position: Array, purpose: int) -> Array:
        """tokens[R], each drawn from its row of weights[R, V], as `pick` would, at position[R] or [1]: an array.

        The noise is computed in every call and nothing is kept, so that a CUDA graph of this works for any position.
        """
        xp = array_namespace(weights)
        tokens = xp.arange(weights.shape[-1], dtype=xp.int64, device=device(weights))[None, :]
        return _race(weights, -xp.log(self.uniform(position[:, None], purpose, tokens)))

    def sample_next(
        self, weights: Array, position: Array | int, num_accepted: Array, num_drafted: Array | int
    ) -> Array:
        # Noise of one row, at a position known on the device only: noise for all possible ones costs many times more.
        xp = array_namespace(weights)
        all_accepted = xp.astype(num_accepted == num_drafted, xp.int64)
        purpose = RESIDUAL + (TARGET - RESIDUAL) * all_accepted
        tokens = xp.arange(weights.shape[-1], dtype=xp.int64, device=device(weights))
        return _race(weights, -xp.log(self.uniform(num_accepted + position, purpose, tokens)))

    def accept_prefix(self, prob: Array, accepted_anyway: Array | None, position: Array | int) -> tuple[Array, Array]:
        xp = array_namespace(prob)
        num = prob.shape[0]
        passed = self._noise(prob[:1], position, num, ACCEPT)[:, 0] < prob if num else prob > 0  # float64: 1.0 passes
        return _leading(xp, passed, accepted_anyway), passed

    def accept_longest(self, prob: Array, position: Array | int) -> Array:
        num = prob.shape[0]
        return _last(self._noise(prob[:1], position, num, ACCEPT)[:, 0] < prob if num else prob > 0)

    def target_draws(self, weights: Array, position: Array | int) -> Array:
        return _race(weights, self._noise(weights, position, weights.shape[0], TARGET))

    def of_round(self, start: Array | int) -> HashRng:
        key = self.key[0], (self.key[1] + (start + 1) * 0x9E3779B1) & _MASK
        return HashRng(key, start, _ROUND_ROWS) if isinstance(start, int) else HashRng(key)

    def _noise(self, like: Array, position: Array | int, count: int, purpose: int) -> Array:
        """[count, V] for `count` positions: the divisors of weights[V]; for ACCEPT, where V = 1, the noise itself.

        Computed for a block of positions at a time and kept: hashing few values is nearly all overhead.
        """
        xp, size = array_namespace(like), like.shape[-1]
        rows = max(1, min(self._rows, _BLOCK // size))
        position -= self._first
        parts = []
        for block in range(position // rows, (position + count - 1) // rows + 1):
            key = (purpose, block, size, xp.__name__, str(device(like)))
            if key not in self._blocks:
                if len(self._blocks) >= _BLOCKS:
                    self._blocks.clear()
                at = xp.arange(block * rows, (block + 1) * rows, dtype=xp.int64, device=device(like))[:, None]
                at = at + self._first
                tokens = xp.arange(size, dtype=xp.int64, device=device(like))[None, :]
                noise = self.uniform(at, at * 0 + purpose, tokens)
                self._blocks[key] = noise if purpose == ACCEPT else -xp.log(noise)
            start = max(position - block * rows, 0)
            parts.append(self._blocks[key][start : min(position + count - block * rows, rows)])
        return parts[0] if len(parts) == 1 else xp.concat(parts)

    def uniform(self, position: Array, purpose: Array | int, token: Array) -> Array:
        """Noise in (0, 1), float64, for int64 arrays that broadcast together."""
        xp = array_namespace(token)
        one = _mix(_mix((position + self.key[0]) & _MASK) ^ ((purpose * 0x3C6EF372 + self.key[1]) & _MASK))
        two = _mix(one ^ 0x5BD1E995)
        bits = _mix((_mix((token * 0x1E3779B1 & _MASK) ^ one) + two) & _MASK)
        return (xp.astype(bits, xp.float64) + 0.5) / 2.0**32


def _race(weights: Array, noise: Array) -> Array:
    """argmin(E / p): the greatest p / E wins, which divides by no zero weight."""
    return array_namespace(weights).argmax(weights / noise, axis=-1)


@dataclass(frozen=True, slots=True)
class ArrayRng(HashRng):
    """`HashRng` at positions that only the device knows: computes noise in every call, and keeps none."""

    def of_round(self, start: Array | int) -> ArrayRng:
        return ArrayRng(HashRng.of_round(self, start).key)

    def _noise(self, like: Array, position: Array | int, count: int, purpose: int) -> Array:
        xp, where = array_namespace(like), device(like)
        at = (xp.arange(count, dtype=xp.int64, device=where) + position)[:, None]
        tokens = xp.arange(like.shape[-1], dtype=xp.int64, device=where)[None, :]
        noise = self.uniform(at, purpose, tokens)
        return noise if purpose == ACCEPT else -xp.log(noise)


@dataclass(frozen=True, slots=True)
class CertainRng:
    """For temperature 0, where every distribution is one-hot: the same outcomes as any other rng, without noise."""

    def pick(self, weights: Array, position: Array | int, purpose: int) -> Array:
        return array_namespace(weights).argmax(weights)

    def sample_next(
        self, weights: Array, position: Array | int, num_accepted: Array, num_drafted: Array | int
    ) -> Array:
        return array_namespace(weights).argmax(weights)

    def accept_prefix(self, prob: Array, accepted_anyway: Array | None, position: Array | int) -> tuple[Array, Array]:
        passed = prob > 0
        return _leading(array_namespace(prob), passed, accepted_anyway), passed

    def accept_longest(self, prob: Array, position: Array | int) -> Array:
        return _last(prob > 0)

    def target_draws(self, weights: Array, position: Array | int) -> Array:
        return array_namespace(weights).argmax(weights, axis=-1)

    def of_round(self, start: Array | int) -> CertainRng:
        return self


def pick_each(rngs: Sequence[Rng], weights: Array, positions: Sequence[int], purpose: int) -> Array:
    """tokens[A], each drawn from its row of weights[A, V] at its position by its rng, as `pick` would."""
    xp = array_namespace(weights)
    hashed = [rng for rng in rngs if isinstance(rng, HashRng)]
    if len(rngs) == 1 or len(hashed) < len(rngs):
        return xp.stack([d.pick(w, p, purpose) for d, w, p in zip(rngs, weights, positions, strict=True)])
    noise = [rng._noise(weights, position, 1, purpose) for rng, position in zip(hashed, positions, strict=True)]
    return _race(weights, xp.concat(noise))


def rng_for(temperature: float, seed: int, prompt_id: str, turn: int = 0) -> Rng:
    """The rng of one prompt's turn at this temperature."""
    return CertainRng() if is_greedy(temperature) else HashRng.of(seed, prompt_id, turn)


def _leading(xp: Any, passed: Array, accepted_anyway: Array | None) -> Array:
    good = passed if accepted_anyway is None else passed | accepted_anyway
    return xp.sum(xp.cumulative_prod(xp.astype(good, xp.int64)))


def _last(passed: Array) -> Array:
    """One more than the index of the last True of passed[G]; 0 if there is none."""
    xp = array_namespace(passed)
    numbers = xp.arange(1, passed.shape[0] + 1, dtype=xp.int64, device=device(passed))
    none = xp.zeros(1, dtype=xp.int64, device=device(passed))
    return xp.max(xp.concat([none, xp.where(passed, numbers, none)]))


def _mix(x: Array) -> Array:
    """A 32-bit mixer in int64 arithmetic; both multipliers are below 2**31, so that no product overflows."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _MASK
    x = (x ^ (x >> 15)) * 0x735A2D97 & _MASK
    return x ^ (x >> 15)
