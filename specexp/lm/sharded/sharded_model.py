"""Loads a model whose layers several processes share. This process, the first one, alone decodes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.hf.model_facts import fingerprint_of_parts
from specexp.lm.model import Branches, Session
from specexp.lm.runtime import ModelConfig
from specexp.lm.sharded.commands import FeedShard, LoadShard, OpenShard, TruncateShard, WeighShard
from specexp.lm.sharded.group import Group, started
from specexp.lm.sharded.shards import check_shards, first_values, joined_values

_NUMBERS = count()  # by which commands name models and sessions


def load_sharded(config: ModelConfig, num_valid_ids: int | None = None, suppressed: Sequence[int] = ()) -> HFModel:
    """`load_model` in `config.tensor_parallel` processes at once. Raises ModelError."""
    check_shards(config)
    group = started(config.tensor_parallel)
    number = next(_NUMBERS)
    with group.command(LoadShard(number, config, num_valid_ids, tuple(suppressed))):
        return load_model(config, num_valid_ids, suppressed, LeaderSharding(group, number))


@dataclass(slots=True)
class LeaderSharding:
    """`Sharding` of the process that decodes."""

    group: Group
    model: int
    _fingerprint: str = field(init=False, default="")

    @property
    def size(self) -> int:
        return self.group.size

    @property
    def leads(self) -> bool:
        return True

    def session(self, own: Session, check_trees: Callable[[], object]) -> Session:
        return ShardedSession(own, self.group, self.model, check_trees)

    def fingerprint(self, module: Any) -> str:
        if not self._fingerprint:
            with self.group.command(WeighShard(self.model)):
                shards = self.group.gather(first_values(module))
            weights = ((name, p.shape, [joined_values(shards, name)]) for name, p in module.named_parameters())
            self._fingerprint = fingerprint_of_parts(type(module).__name__, weights)
        return self._fingerprint


class ShardedSession:
    """A session on this process's shard, and the same one in the others: each call is made in all of them."""

    def __init__(self, own: Session, group: Group, model: int, check_trees: Callable[[], object]) -> None:
        self._own, self._group, self._check_trees = own, group, check_trees
        self._number = next(_NUMBERS)
        with group.command(OpenShard(self._number, model)):
            pass

    def __del__(self) -> None:
        self._group.dropped.append(self._number)

    @property
    def length(self) -> int:
        return self._own.length

    def feed(
        self, tokens: Tensor, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if branches is not None:
            self._check_trees()  # which feeds sessions itself, so before the others wait for these tokens
        command = FeedShard(self._number, tokens.shape[0], rows, hidden, branches)
        with self._group.command(command), torch.inference_mode():
            tokens = self._group.share(tokens.to(torch.int64).contiguous())
            return self._own.feed(tokens, rows, hidden, branches)

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        with self._group.command(TruncateShard(self._number, length, tuple(slots))):
            self._own.truncate(length, slots)

    def slots(self) -> object:
        return self._own.slots()
