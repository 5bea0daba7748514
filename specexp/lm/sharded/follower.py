"""Any process of a group but the first: loads its shard, and makes the calls that the first one makes.

    python -m specexp.lm.sharded.follower

It writes nothing, and ends with the first process, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from specexp.errors import SpecexpError, first_line
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.hf_session import HFSession
from specexp.lm.hf.loading import load_model
from specexp.lm.model import Session
from specexp.lm.sharded.commands import FeedShard, LoadShard, OpenShard, TruncateShard, WeighShard
from specexp.lm.sharded.group import EndShards, Group, joined
from specexp.lm.sharded.shards import first_values

ORPHANED = 1.0  # seconds between two looks whether the process that started this one is there


@dataclass(frozen=True, slots=True)
class FollowerSharding:
    """`Sharding` of a process that follows: its sessions are opened by commands alone."""

    size: int
    leads: bool = False

    def session(self, own: Session, check_trees: Callable[[], object]) -> Session:
        return own

    def fingerprint(self, module: Any) -> str:
        raise AssertionError("the first process asks for the values of all shards")


def follow(group: Group) -> None:
    """Obey the first process until it says that it ends."""
    models: dict[int, HFModel] = {}
    sessions: dict[int, tuple[HFModel, HFSession]] = {}
    while True:
        command, dropped = group.receive()
        for number in dropped:
            sessions.pop(number, None)
        match command:
            case LoadShard(number, config, num_valid_ids, suppressed):
                models[number] = load_model(config, num_valid_ids, suppressed, FollowerSharding(group.size))
            case WeighShard(model):
                group.gather(first_values(models[model].module))
            case OpenShard(number, model):
                sessions[number] = models[model], HFSession(models[model])
            case FeedShard(number, num_tokens, rows, hidden, branches):
                of, session = sessions[number]
                tokens = group.share(torch.empty(num_tokens, dtype=torch.int64, device=of.device))
                session.feed(tokens, rows, hidden, branches)
            case TruncateShard(number, length, slots):
                sessions[number][1].truncate(length, slots)
            case EndShards():
                return


def main() -> None:
    """Follow; on a failure say why in one line, which the first process repeats."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        follow(joined())
    except SpecexpError as error:
        sys.exit(" ".join(str(error).split()))
    except RuntimeError as error:  # of a collective, if the first process has ended, or of this shard
        sys.exit(first_line(error))


def _end_with(parent: int) -> None:
    """End this process once its parent has gone: a collective on a GPU would wait for it."""
    while os.getppid() == parent:
        time.sleep(ORPHANED)
    os._exit(1)


if __name__ == "__main__":
    main()
