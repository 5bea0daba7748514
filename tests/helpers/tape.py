"""A capture for tests on a CPU: operations are recorded once, and replayed on the same tensors.

As in a CUDA graph, values from the host are frozen, and reading a value of a tensor while recording is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

READS = ("aten.item", "aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.lift_fresh", "aten.equal")


class Recorder(TorchDispatchMode):
    """Records every operation: its function, flattened arguments, the spec that restores them, and its results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any], Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(READS), f"{func} reads or brings a host value while recording"
        given, spec = tree_flatten((args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, given, spec, tree_flatten(out)[0]))
        return out


class Tape:
    """Captures functions, and counts its recordings."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Any:
        self.num_recorded += 1
        with torch.inference_mode(), Recorder() as recorder:
            outputs = function(*inputs)
        calls = recorder.calls  # they keep every tensor alive, so that ids stay unique

        @torch.inference_mode()
        def replay() -> tuple[Tensor, ...]:
            made: dict[int, Any] = {}
            for func, given, spec, results in calls:
                args, kwargs = tree_unflatten([made.get(id(x), x) if isinstance(x, Tensor) else x for x in given], spec)
                fresh = tree_flatten(func(*args, **kwargs))[0]
                made.update({id(old): new for old, new in zip(results, fresh, strict=True) if isinstance(old, Tensor)})
            for x in outputs:  # a graph's outputs are the same memory every time
                if id(x) in made:
                    x.copy_(made[id(x)])
            return outputs

        return replay
