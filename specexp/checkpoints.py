"""The progress of a training in its work folder, and the learning rates that both trainings here have.

`checkpoint.pt` is replaced atomically. A training whose batch is a function of the seed and the step continues from one
as if it had not been interrupted.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from specexp.errors import OutputError, first_line
from specexp.storage.files import writing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CHECKPOINT = "checkpoint.pt"
MALLOPT = {-4: 0, -1: 2**31 - 1}  # M_MMAP_MAX: none; M_TRIM_THRESHOLD: give back what is free beyond 2 GiB
LEAST_RATE = 0.02  # at the end, as a share of the highest


class Schedule(Protocol):
    """A recipe's number of steps, and those in which the learning rate rises."""

    @property
    def steps(self) -> int: ...

    @property
    def warmup(self) -> int: ...


def rate(step: int, schedule: Schedule) -> float:
    """The learning rate at a step, as a share of the highest: a linear rise, then a cosine."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step, where it is glibc: tensors of megabytes are else mapped
    anew in every step, page by page."""
    change = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if change is not None:
        for name, value in MALLOPT.items():
            change(ctypes.c_int(name), ctypes.c_int(value))


@dataclass(frozen=True, slots=True)
class Training:
    """A module that is trained, its optimizers, and the recipe that a checkpoint must have been made by."""

    recipe: DataclassInstance
    module: torch.nn.Module
    optimizers: Sequence[torch.optim.Optimizer]

    def __post_init__(self) -> None:
        keep_freed_memory()

    def restore(self, work: Path) -> int:
        """Continue from the checkpoint in `work`: the number of steps that are done. Raises OutputError."""
        state = load_checkpoint(self.recipe, work)
        if state is None:
            return 0
        self.module.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])

    def save(self, work: Path, step: int) -> None:
        """Write the checkpoint after `step` steps. Raises OutputError."""
        state = {
            "recipe": asdict(self.recipe), "step": step, "model": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        with writing(work / CHECKPOINT) as partial, partial.open("wb") as file:
            torch.save(state, file)

    def advance(self, share: float) -> None:
        """One step of the optimizers by the gradients, at this share of their highest learning rates."""
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("base_lr", group["lr"]) * share
            optimizer.step()
            optimizer.zero_grad()


def load_checkpoint(recipe: DataclassInstance, work: Path) -> Mapping[str, Any] | None:
    """Return the checkpoint of an interrupted training in `work`, or None. Raises OutputError for another recipe's."""
    path = work / CHECKPOINT
    if not path.exists():
        return None
    way_out = "remove it to train from the start, or name another folder."
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        fault = "" if {"recipe", "step", "model", "optimizers"} <= state.keys() else "it is no checkpoint"
    except Exception as error:  # torch raises various errors for a truncated or edited file
        fault = first_line(error)
    if fault:
        raise OutputError(f"{path} cannot be read ({fault}); {way_out}")
    later = {field.name: field.default for field in fields(recipe) if field.name not in state["recipe"]}
    if {**later, **state["recipe"]} != asdict(recipe):  # a field that it lacks had its default
        raise OutputError(f"{path} was made by another recipe: {state['recipe']}; {way_out}")
    return state
