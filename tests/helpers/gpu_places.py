"""Where the flows of `tests/gpu` run: on a GPU, or on a CPU whose forwards are recorded by a stand-in for CUDA graphs.

The stand-in (`tape.py`) gives every model that is loaded a tape of its own, so that commands run as they do on a GPU:
captured chains, drafts and trees. What differs is the device of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from helpers.tape import Tape
from specexp.lm.hf import loading
from specexp.lm.hf.hf_model import HFModel

CUDA, STAND_IN = "cuda", "stand-in"
NO_CUDA = "" if torch.cuda.is_available() else "no CUDA device: this flow runs on the stand-in for capture alone"
PLACES = [
    pytest.param(CUDA, marks=pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA or "there is one")),
    pytest.param(STAND_IN),
]


@dataclass(slots=True)
class Place:
    """Where models run, and how much a flow decodes there: a tape replays in Python, so that little is enough."""

    name: str
    tapes: list[Tape] = field(default_factory=list)

    @property
    def device(self) -> str:
        return "cuda:0" if self.name == CUDA else "cpu"

    def few(self, on_gpu: int, on_cpu: int) -> str:
        """A count for a command line."""
        return str(on_gpu if self.name == CUDA else on_cpu)

    def config(self, folder: Path, dtype: str = "float32", **target: str) -> list[str]:
        """Write a settings file that puts both models here; returns the arguments that name it."""
        models = {"device": self.device, "dtype": dtype}
        file = folder / f"{self.name}-{dtype}-{'-'.join(target.values()) or 'plain'}.yaml"
        file.write_text(yaml.safe_dump({"target": models | target, "draft": models}))
        return ["--config", str(file)]

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Models that are loaded inside are recorded."""
        if self.name == CUDA:
            yield
            return

        def make(*given: Any, **more: Any) -> HFModel:
            self.tapes.append(Tape())
            return HFModel(*given, **{"graphs": self.tapes[-1], **more})

        with mock.patch.object(loading, "HFModel", make):
            yield

    @property
    def num_recorded(self) -> int:
        """Recordings of the stand-in so far."""
        return sum(tape.num_recorded for tape in self.tapes)
