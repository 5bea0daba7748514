"""Compares outputs token by token, and decides if a divergence is a near tie.

At temperature 0 this depends on the logits alone. Where tokens are drawn, methods that share the rng share the
exponential race argmin(E_x / p_x): it is a near tie if logits that differ by rounding only give it another winner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from specexp.decoding.rng import TARGET, CertainRng, HashRng, Rng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.pair.loading import Pair

NOISE = 1e-4  # of logits in float32; in a coarser dtype it grows with the logits
# Machine epsilon of each dtype, by the names that torch gives them.
EPS = {
    "float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float8_e5m2": 2.0**-2,
}  # fmt: skip
EXACT_DTYPES = ("float32", "float64")  # their rounding is too small to be mistaken for a bug
COARSE = 8  # a gap above this multiple of `noise` is not rounding in any dtype
Array = Any
Outputs = Sequence[Sequence[int]]  # ids of each prompt's output


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an output first differs from the reference; a token is None if that output has ended.

    `gap` is the distance of the two tokens' target logits, after the common prefix; where tokens are drawn, of their
    places in the race, in logits. It is None if top-k or top-p excludes a token. `noise` is how far apart rounding may
    put two logits there.
    """

    name: str
    prompt_id: str
    position: int
    token: int | None
    reference: int | None
    gap: float | None
    near_tie: bool
    noise: float = NOISE


@dataclass(frozen=True, slots=True)
class Draws:
    """How all methods draw the target's tokens: greedily, or with the same rng."""

    warp: Warp
    rng: Callable[[str], Rng]  # by prompt id

    def token(self, logits: Array, prompt_id: str, position: int) -> int:
        """Return the token drawn from logits[V] at this position."""
        return int(self.rng(prompt_id).pick(self.warp(logits[None])[0], position, TARGET))

    def gap(self, logits: Array, prompt_id: str, position: int, tokens: Sequence[int]) -> float | None:
        """Return the distance of two tokens in the race, in logits; None if one of them has probability 0."""
        rng = self.rng(prompt_id)
        if self.warp.greedy or not isinstance(rng, HashRng):
            return abs(float(logits[tokens[0]] - logits[tokens[1]]))
        p = [float(weight) for weight in self.warp(logits[None])[0][tokens]]
        if not all(p):
            return None
        places = [np.asarray(value, dtype=np.int64) for value in ([position], [TARGET], tokens)]
        keys = np.log(p) - np.log(-np.log(rng.uniform(*places)))
        return float(self.warp.temperature * abs(keys[0] - keys[1]))


GREEDY = Draws(Warp(), lambda prompt_id: CertainRng())


def noise_of(dtype: object, logits: Array) -> float:
    """Return how far apart rounding may put two logits in a model of this dtype (torch's, or its name)."""
    xp = array_namespace(logits)
    scored = xp.where(logits == -xp.inf, xp.zeros_like(logits), logits)  # suppressed ids have a logit of -inf
    return max(NOISE, EPS[str(dtype).removeprefix("torch.")] * float(abs(scored).max()))


def differences(
    pair: Pair,
    dtype: object,
    prompts: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Outputs],
    reference: str,
    draws: Draws = GREEDY,
) -> list[Difference]:
    """Return one difference per output that is not `reference`'s: `outputs` by name, each in the order of `prompts`."""
    engine = Engine(pair.models)
    result = []
    for name, method_outputs in outputs.items():
        for (prompt_id, ids), output, expected in zip(prompts.items(), method_outputs, outputs[reference], strict=True):
            result.append(difference(engine, dtype, name, prompt_id, ids, output, expected, draws))
    return [each for each in result if each is not None]


def difference(
    engine: Engine,
    dtype: object,
    name: str,
    prompt_id: str,
    ids: Sequence[int],
    output: Sequence[int],
    expected: Sequence[int],
    draws: Draws = GREEDY,
) -> Difference | None:
    """Return where the output of a prompt with these `ids` first differs from the expected one; None if it is equal."""
    if list(output) == list(expected):
        return None
    shorter = min(len(output), len(expected))
    at = next((i for i in range(shorter) if output[i] != expected[i]), shorter)
    token, other = (out[at] if at < len(out) else None for out in (output, expected))
    if token is None or other is None:
        return Difference(name, prompt_id, at, token, other, None, False)
    logits = engine.score("target", [*ids, *expected[:at]], [])[0][-1]
    noise = noise_of(dtype, logits)
    gap = draws.gap(logits, prompt_id, at, [token, other])
    near = _near_tie(draws, logits, prompt_id, at, (token, other), noise)
    return Difference(name, prompt_id, at, token, other, gap, near, noise)


def explanation(divergence: Difference, dtype: str) -> str:
    """Return `near tie`; `rounding` if a coarse dtype may have made the gap; else `unexplained`."""
    if divergence.near_tie:
        return "near tie"
    return "unexplained" if dtype in EXACT_DTYPES or beyond_rounding(divergence) else "rounding"


def beyond_rounding(divergence: Difference) -> bool:
    """True if no dtype's rounding explains the difference: one output ended, or the tokens are far apart."""
    if divergence.token is None or divergence.reference is None:
        return True
    return divergence.gap is not None and divergence.gap > COARSE * divergence.noise


def _near_tie(
    draws: Draws, logits: Array, prompt_id: str, position: int, tokens: tuple[int, int], noise: float
) -> bool:
    """True if each of the two tokens is drawn from some logits that equal these up to rounding."""
    winners = {
        draws.token(moved, prompt_id, position)
        for one, other in (tokens, tokens[::-1])
        for moved in _moved(logits, one, other, noise / 2)
    }
    return set(tokens) <= winners


def _moved(logits: Array, token: int, rival: int, by: float) -> Iterator[Array]:
    """Yield logits[V], each moved by at most `by`, in the ways that favour `token` over `rival` most.

    In the race and in top-k's ranks only these two tokens matter; in top-p also those that rank before them.
    """
    xp = array_namespace(logits)
    ids = xp.arange(logits.shape[0], device=device(logits))
    yield logits
    for lowered in (ids != token, logits > logits[token], ids == rival, ~(logits > logits[rival])):
        yield logits + by * (1 - 2 * xp.astype(lowered, logits.dtype))


@dataclass(frozen=True, slots=True)
class Reread:
    """The result of one forward over prompt and output: the token drawn at each position, and logits[N, V]."""

    tokens: list[int]
    logits: Array


def reread(pair: Pair, draws: Draws, prompt_id: str, ids: Sequence[int], output: Sequence[int]) -> Reread:
    """Draw an output again from a single forward of the target over the whole text."""
    model = pair.models["target"]
    logits, _ = model.session().feed(model.ids([*ids, *output[:-1]]), len(output))
    return Reread([draws.token(row, prompt_id, at) for at, row in enumerate(logits)], logits)


def entropies(draws: Draws, logits: Array) -> list[float]:
    """Return the entropy of the warped distribution of each row of logits[N, V], in nats."""
    return [-sum(p * math.log(p) for p in row if p > 0) for row in draws.warp(logits).tolist()]
