"""`torch.cuda`'s graphs on a CPU: operations are recorded and replayed in place, and memory pools end as CUDA's do.

A pool lives as long as a graph in it. Capturing into the handle of an ended pool raises the error that PyTorch raises.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from helpers.tape import Recorder

Handle = tuple[int, int]


class FakeGraph:
    """Replaces `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, list[Any], Any, list[Any]]] = []
        self.handle: Handle | None = None

    def pool(self) -> Handle:
        assert self.handle is not None, "nothing was captured"
        return self.handle

    @torch.inference_mode()
    def replay(self) -> None:
        """Run every operation again, on its original memory."""
        for function, given, spec, results in self.calls:
            args, kwargs = tree_unflatten(given, spec)
            for old, new in zip(results, tree_flatten(function(*args, **kwargs))[0], strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


class FakeCuda:
    """Records what is captured, and into which pool."""

    def __init__(self) -> None:
        self.graphs: weakref.WeakSet[FakeGraph] = weakref.WeakSet()
        self.handles: list[Handle] = []  # of every capture
        self._new = itertools.count(1)

    @contextmanager
    def capture(self, graph: FakeGraph, pool: Handle | None = None, stream: Any = None) -> Iterator[None]:
        """Replaces `torch.cuda.graph`."""
        if pool is not None and all(each.handle != pool for each in self.graphs):
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp")
        with torch.inference_mode(), Recorder() as recorder:
            yield
        graph.calls, graph.handle = recorder.calls, pool or (0, next(self._new))
        self.graphs.add(graph)
        self.handles.append(graph.handle)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Inside, these fakes replace `torch.cuda`'s graphs."""
    cuda = FakeCuda()
    with (
        mock.patch.object(torch.cuda, "CUDAGraph", FakeGraph),
        mock.patch.object(torch.cuda, "graph", cuda.capture),
        mock.patch.object(torch.cuda, "device", return_value=nullcontext()),
        mock.patch.object(torch.cuda, "stream", return_value=nullcontext()),
        mock.patch.object(torch.cuda, "Stream", mock.Mock),
        mock.patch.object(torch.cuda, "current_stream", mock.Mock),
    ):
        yield cuda
