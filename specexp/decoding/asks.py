"""What a decoder may ask, and what it is told.

A decoder is a generator. It yields `Score` and `Draft` to learn what a model thinks, and `Round` to say what it
committed; the engine (`specexp.engine`) answers. A decoder never sees a KV cache, a device, a limit or a clock.

Shapes: G drafted tokens, V vocabulary, H hidden size, R rows, M tokens of a round.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specexp.decoding.rules import Warp

Array = Any  # an array of any namespace that array-api-compat knows
Role = Literal["target", "draft"]


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Ask what `model` thinks after the last committed token and after each of `tokens`.

    The first ask of a round answers R = N + 1 rows (row 0 follows the last committed token), later ones R = N rows: the
    tokens continue the chain fed to this model since the last `Round`. `tokens=None` asks for row 0 alone.
    """

    model: Role
    tokens: Array | None = None
    hidden: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """logits[R, V]; hidden[R, H], the last layer after its norm, when asked for."""

    logits: Array
    hidden: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """Ask for a chain of at most `gamma` tokens sampled from the draft under `warp`.

    The engine trims it so that the chain and `reserve` more tokens fit what is left to emit, and the draft's context.
    """

    gamma: int
    warp: Warp
    reserve: int = 1
    hidden: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """tokens[G], each drawn from its row of q[G, V]; 0 <= G <= gamma. hidden[G, H] are the rows q was read from."""

    tokens: Array
    q: Array
    hidden: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Tell what was committed: the first `num_tokens` of `tokens`[M]. Answered with the room left; 0 ends the decoder.

    `num_accepted` of the tokens came from the draft chain, so that many slots of every cache hold committed tokens; the
    engine drops the others. `counts` are sums for the record (integers or 0-d arrays).
    """

    tokens: Array
    num_tokens: Array | int
    num_accepted: Array | int = 0
    counts: Mapping[str, Array | int] = field(default_factory=dict)


Ask = Score | Draft | Round
Steps = Generator[Ask, Any, None]
