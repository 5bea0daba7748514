"""The processes that share a model's layers: the first one decodes, and tells the others what to do.

transformers shards the weights (`tp_plan="auto"`), so that a forward is a collective of all processes. Decoding itself
is not repeated in each: what depends on a clock, such as draft lengths that adapt, would take the processes apart. The
first process therefore sends each call to its sessions, and the others make the same one on their shards.

The processes are started here, on this machine, or by torchrun (on several). Commands go over gloo, in host memory; a
forward's sums go over the device's own backend.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from specexp.errors import ModelError, first_line

HOST = "127.0.0.1"
STORE = "SPECEXP_STORE"  # the variable with the port of the store at which processes that are started here meet
PATIENCE = timedelta(minutes=10)  # for all processes to come
IDLE = timedelta(days=30)  # that the first process may take between two commands
LAST_WORDS = 5.0  # seconds that the others have to end, and that a death may take to be seen


@dataclass(frozen=True, slots=True)
class EndShards:
    """The last command."""


@dataclass(slots=True)
class Group:
    """All processes, seen from one of them. `others` are those that this one has started."""

    rank: int
    size: int
    commands: Any  # the process group of the commands
    others: Sequence[subprocess.Popen[bytes]] = ()
    said: Sequence[IO[bytes]] = ()  # what each of them writes on standard error
    dropped: list[int] = field(default_factory=list)  # sessions that nobody uses any more; told with the next command
    interrupted: bool = False  # in the middle of a command

    @contextmanager
    def command(self, command: object) -> Iterator[None]:
        """Give the other processes a command, from the first one, and obey it here within the context.

        A failure is a ModelError if another process has ended.
        """
        dropped, self.dropped[:] = tuple(self.dropped), []
        self.interrupted = True  # unless the context is left in order
        try:
            dist.broadcast_object_list([(command, dropped)], src=0, group=self.commands)
            yield
        except RuntimeError as error:
            if death := self.death(LAST_WORDS):
                raise ModelError(f"{death} Start the command again; with --resume true it goes on.") from error
            raise
        self.interrupted = False

    def receive(self) -> tuple[Any, Sequence[int]]:
        """Wait for a command; returns it with the sessions that are dropped."""
        message: list[Any] = [None]
        dist.broadcast_object_list(message, src=0, group=self.commands)
        command, dropped = message[0]
        return command, dropped

    def share(self, tokens: Tensor) -> Tensor:
        """Send tokens[N] on the device from the first process to the others; the host does not wait for them."""
        dist.broadcast(tokens, src=0)
        return tokens

    def gather(self, value: object) -> list[Any]:
        """Each process's value, in the first one; the others get an empty list."""
        result: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, result, dst=0, group=self.commands)
        return result or []

    def death(self, patience: float = 0.0) -> str:
        """How another process has ended within so many seconds; "" if all run, or if torchrun watches them."""
        end = time.monotonic() + patience
        while self.others:
            for rank, (process, said) in enumerate(zip(self.others, self.said, strict=True), 1):
                if (code := process.poll()) is not None:
                    said.seek(0)
                    lines = said.read().decode(errors="replace").strip().splitlines()
                    why = f"signal {-code}" if code < 0 else f"exit code {code}"
                    last = f": {lines[-1].rstrip('.')}." if lines and code > 0 else "."
                    return f"process {rank} of the {self.size} that hold the target's layers has ended ({why}){last}"
            if time.monotonic() >= end:
                break
            time.sleep(0.05)
        return ""

    def close(self) -> None:
        """End the other processes: by a command, unless one of them is in the middle of another."""
        with suppress(Exception):
            if not self.interrupted and not self.death():
                dist.broadcast_object_list([(EndShards(), ())], src=0, group=self.commands)
                for process in self.others:
                    process.wait(LAST_WORDS)
        for process in self.others:
            process.kill()
        with suppress(Exception):
            dist.destroy_process_group()


def under_torchrun() -> bool:
    """True if torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and STORE not in os.environ


def started(size: int) -> Group:
    """The group of which this process is the first: of `size` processes, which torchrun has started or this starts.

    It is the same at each call, and ends with this process. Raises ModelError.
    """
    if not under_torchrun():
        return _started_here(size)
    if size != int(os.environ["WORLD_SIZE"]):
        raise ModelError(
            f"tensor_parallel is {size}, but torchrun started {os.environ['WORLD_SIZE']} processes; make them equal."
        )
    return started_by_torchrun()


@cache
def started_by_torchrun() -> Group:
    """The group of all processes that torchrun started, from the first one."""
    group = joined()
    atexit.register(group.close)
    return group


def joined() -> Group:
    """This process in the group that torchrun or the first process has begun."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = None
    if port := os.environ.get(STORE):
        store = TCPStore(HOST, int(port), size, is_master=False, timeout=PATIENCE)
    return _entered(rank, size, store)


@cache
def _started_here(size: int) -> Group:
    store = TCPStore(HOST, 0, size, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    others, said = [], []
    for rank in range(1, size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, STORE: store.port}
        said.append(tempfile.TemporaryFile())  # noqa: SIM115 (open as long as the process)
        others.append(
            subprocess.Popen(
                [sys.executable, "-m", "specexp.lm.sharded.follower"],
                env={**os.environ, **{name: str(value) for name, value in own.items()}},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said[-1],
                start_new_session=True,  # Ctrl-C is for the first process, which ends the others
            )
        )  # fmt: skip
    group = Group(0, size, None, others, said)
    try:
        group.commands = _entered(0, size, store).commands
    except ModelError as error:
        raise ModelError(group.death() or str(error)) from error
    atexit.register(group.close)
    return group


def _entered(rank: int, size: int, store: Any) -> Group:
    """Meet the other processes. With a GPU each has one of its own, by its number on its machine."""
    local, cuda = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    where = {"store": store, "rank": rank, "world_size": size} if store is not None else {}
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo", timeout=PATIENCE, device_id=torch.device("cuda", local) if cuda else None,
            **where,
        )  # fmt: skip
        return Group(rank, size, dist.new_group(backend="gloo", timeout=IDLE))
    except dist.DistError as error:
        raise ModelError(f"the processes of tensor_parallel did not meet: {first_line(error)}") from error
