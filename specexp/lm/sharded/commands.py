"""What the first process tells the others to do, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specexp.lm.model import Branches
from specexp.lm.runtime import ModelConfig


@dataclass(frozen=True, slots=True)
class LoadShard:
    """Load a model's shard, under this number."""

    model: int
    config: ModelConfig
    num_valid_ids: int | None
    suppressed: Sequence[int]


@dataclass(frozen=True, slots=True)
class WeighShard:
    """Say the first values of the parameters' shards (`gather`)."""

    model: int


@dataclass(frozen=True, slots=True)
class OpenShard:
    """Open a session of a model, under this number."""

    session: int
    model: int


@dataclass(frozen=True, slots=True)
class FeedShard:
    """`Session.feed`; the tokens follow (`share`)."""

    session: int
    num_tokens: int
    rows: int
    hidden: bool
    branches: Branches | None


@dataclass(frozen=True, slots=True)
class TruncateShard:
    """`Session.truncate`."""

    session: int
    length: int
    slots: Sequence[int]
