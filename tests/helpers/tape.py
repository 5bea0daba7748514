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

Call = tuple[Any, list[Any], Any, list[Any]]
READS = ("aten.item", "aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.lift_fresh", "aten.equal")


class Recorder(TorchDispatchMode):
    """Records every operation: its function, flattened arguments, the spec that restores them, and its results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call | tuple[Tensor, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(READS), f"{func} reads or brings a host value while recording"
        given, spec = tree_flatten((args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, given, spec, tree_flatten(out)[0]))
        return out


class Tape:
    """Captures functions, and counts its recordings; of parts that a flag decides on, how many ran and were skipped."""

    def __init__(self) -> None:
        self.num_recorded = self.num_run = self.num_skipped = 0
        self._recorder: Recorder | None = None

    def when(self, flag: Tensor, body: Callable[[], None]) -> None:
        assert self._recorder is not None, "nothing is being recorded"
        before, self._recorder.calls = self._recorder.calls, []
        body()
        before.append((flag, self._recorder.calls))
        self._recorder.calls = before

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Any:
        self.num_recorded += 1
        with torch.inference_mode(), Recorder() as self._recorder:
            outputs = function(*inputs)
        calls = self._recorder.calls  # they keep every tensor alive, so that ids stay unique
        self._recorder = None

        def run(calls: list[Any], made: dict[int, Any]) -> None:
            for call in calls:
                if len(call) == 2:
                    flag = made.get(id(call[0]), call[0])
                    holds = flag.device.type == "meta" or bool(flag)  # a device without values runs everything
                    self.num_run, self.num_skipped = self.num_run + holds, self.num_skipped + (not holds)
                    run(call[1] if holds else [], made)
                    continue
                func, given, spec, results = call
                args, kwargs = tree_unflatten([made.get(id(x), x) if isinstance(x, Tensor) else x for x in given], spec)
                fresh = tree_flatten(func(*args, **kwargs))[0]
                made.update({id(old): new for old, new in zip(results, fresh, strict=True) if isinstance(old, Tensor)})

        @torch.inference_mode()
        def replay() -> tuple[Tensor, ...]:
            made: dict[int, Any] = {}
            run(calls, made)
            for x in outputs:  # a graph's outputs are the same memory every time
                if id(x) in made:
                    x.copy_(made[id(x)])
            return outputs

        return replay
