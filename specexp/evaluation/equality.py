"""Whether everyone decodes the same tokens: outputs side by side, and how near a tie a divergence is.

At temperature 0 that is a matter of logits. Where tokens are drawn, whoever shares the rng shares the exponential
race argmin(E_x / p_x): it is a near tie where logits that differ by no more than rounding give it another winner.
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

NOISE = 1e-4  # of logits in float32; in a coarser dtype it grows with them
# Spacing of numbers at 1, by the names that torch gives its dtypes.
EPS = {
    "float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float8_e5m2": 2.0**-2,
}  # fmt: skip
EXACT_DTYPES = ("float32", "float64")  # in which rounding is too small to be taken for a bug
COARSE = 8  # a gap so many times what rounding puts between two logits is no rounding in any dtype
Array = Any
Outputs = Sequence[Sequence[int]]  # ids of each prompt


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an output first parts from the reference; a token is None where one of them has ended.

    `gap` is that between the target's logits of the two tokens, behind what both have emitted; where tokens are drawn,
    between their places in the race, in logits. It is None where a token was cut off by top-k or top-p. `noise` is how
    far apart rounding may put two logits there.
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
    """How everyone draws the target's tokens: greedily, or by the same rng."""

    warp: Warp
    rng: Callable[[str], Rng]  # of a prompt

    def token(self, logits: Array, prompt_id: str, position: int) -> int:
        """What is drawn from logits[V] at this position."""
        return int(self.rng(prompt_id).pick(self.warp(logits[None])[0], position, TARGET))

    def gap(self, logits: Array, prompt_id: str, position: int, tokens: Sequence[int]) -> float | None:
        """How far apart two tokens end in the race, in logits; None where one of them does not run."""
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
    """How far apart rounding may put two logits, in a model of this dtype (torch's, or its name)."""
    xp = array_namespace(logits)
    scored = xp.where(logits == -xp.inf, xp.zeros_like(logits), logits)  # suppressed ids have no logit
    return max(NOISE, EPS[str(dtype).removeprefix("torch.")] * float(abs(scored).max()))


def differences(
    pair: Pair,
    dtype: object,
    prompts: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Outputs],
    reference: str,
    draws: Draws = GREEDY,
) -> list[Difference]:
    """One for each output that is not `reference`'s: `outputs` by name, each in the order of `prompts`."""
    engine = Engine(pair.models)
    found = []
    for name, theirs in outputs.items():
        for (prompt_id, ids), mine, want in zip(prompts.items(), theirs, outputs[reference], strict=True):
            found.append(difference(engine, dtype, name, prompt_id, ids, mine, want, draws))
    return [each for each in found if each is not None]


def difference(
    engine: Engine,
    dtype: object,
    name: str,
    prompt_id: str,
    ids: Sequence[int],
    mine: Sequence[int],
    want: Sequence[int],
    draws: Draws = GREEDY,
) -> Difference | None:
    """Where the output of a prompt of these `ids` first parts from the wanted one; None where it is the same."""
    if list(mine) == list(want):
        return None
    shorter = min(len(mine), len(want))
    at = next((i for i in range(shorter) if mine[i] != want[i]), shorter)
    token, other = (out[at] if at < len(out) else None for out in (mine, want))
    if token is None or other is None:
        return Difference(name, prompt_id, at, token, other, None, False)
    logits = engine.look("target", [*ids, *want[:at]], [])[0][-1]
    noise = noise_of(dtype, logits)
    gap = draws.gap(logits, prompt_id, at, [token, other])
    near = _near_tie(draws, logits, prompt_id, at, (token, other), noise)
    return Difference(name, prompt_id, at, token, other, gap, near, noise)


def explanation(found: Difference, dtype: str) -> str:
    """`near tie`; `rounding`, where a coarse dtype may have made the gap; or `unexplained`."""
    if found.near_tie:
        return "near tie"
    return "unexplained" if dtype in EXACT_DTYPES or beyond_rounding(found) else "rounding"


def beyond_rounding(found: Difference) -> bool:
    """Whether no dtype's rounding explains it: one of them ended, or the tokens are far apart."""
    if found.token is None or found.reference is None:
        return True
    return found.gap is not None and found.gap > COARSE * found.noise


def _near_tie(
    draws: Draws, logits: Array, prompt_id: str, position: int, tokens: tuple[int, int], noise: float
) -> bool:
    """Whether either token is drawn from logits that rounding may have made of these."""
    winners = {
        draws.token(moved, prompt_id, position)
        for one, other in (tokens, tokens[::-1])
        for moved in _moved(logits, one, other, noise / 2)
    }
    return set(tokens) <= winners


def _moved(logits: Array, token: int, rival: int, by: float) -> Iterator[Array]:
    """logits[V], each moved by `by` at most, in the ways that favour `token` over `rival` most.

    In the race and in top-k's ranks the two themselves count; in top-p also what ranks before them.
    """
    xp = array_namespace(logits)
    ids = xp.arange(logits.shape[0], device=device(logits))
    yield logits
    for lowered in (ids != token, logits > logits[token], ids == rival, ~(logits > logits[rival])):
        yield logits + by * (1 - 2 * xp.astype(lowered, logits.dtype))


@dataclass(frozen=True, slots=True)
class Reread:
    """What one forward over prompt and output makes of each position: the token drawn there, and logits[N, V]."""

    tokens: list[int]
    logits: Array


def reread(pair: Pair, draws: Draws, prompt_id: str, ids: Sequence[int], output: Sequence[int]) -> Reread:
    """Draw an output again from a single forward of the target over the whole text."""
    model = pair.models["target"]
    logits, _ = model.session().feed(model.ids([*ids, *output[:-1]]), len(output))
    return Reread([draws.token(row, prompt_id, at) for at, row in enumerate(logits)], logits)


def entropies(draws: Draws, logits: Array) -> list[float]:
    """Of the warped distribution in each row of logits[N, V], in nats."""
    return [-sum(p * math.log(p) for p in row if p > 0) for row in draws.warp(logits).tolist()]
