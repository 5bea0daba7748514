"""A capture for tests on a CPU: operations are recorded once, and replayed on the same tensors.

As in a CUDA graph, values from the host are frozen, and reading a value of a tensor while recording is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        calls, slots = _without_results(self._recorder.calls, outputs)
        self._recorder = None

        def run(calls: list[Any], made: dict[int, Any]) -> None:
            for call in calls:
                if len(call) == 2:
                    flag = call[0].now(made)
                    holds = flag.device.type == "meta" or bool(flag)  # a device without values runs everything
                    self.num_run, self.num_skipped = self.num_run + holds, self.num_skipped + (not holds)
                    run(call[1] if holds else [], made)
                    continue
                func, given, spec, results = call
                args, kwargs = tree_unflatten([x.now(made) if isinstance(x, Slot) else x for x in given], spec)
                fresh = tree_flatten(func(*args, **kwargs))[0]
                made.update({place: new for place, new in zip(results, fresh, strict=True) if place is not None})

        @torch.inference_mode()
        def replay() -> tuple[Tensor, ...]:
            made: dict[int, Any] = {}
            run(calls, made)
            for x, slot in zip(outputs, slots, strict=True):  # a graph's outputs are the same memory every time
                if slot.place in made:
                    x.copy_(made[slot.place])
            return outputs

        return replay


@dataclass(frozen=True)
class Slot:
    """A tensor of a recording: what was made last in its place, or a tensor from outside."""

    place: int
    outside: Tensor | None

    def now(self, made: dict[int, Any]) -> Any:
        return made.get(self.place, self.outside)


def _without_results(calls: list[Any], outputs: Sequence[Tensor]) -> tuple[list[Any], list[Slot]]:
    """Calls with a place in place of each tensor, and the outputs' places: what was computed while recording is freed.

    Until then the calls keep every tensor alive, so that ids are unique.
    """
    places: dict[int, int] = {}
    inside: set[int] = set()  # ids of tensors that the recording made

    def slot(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        place = places.setdefault(id(x), len(places))
        return Slot(place, None if id(x) in inside else x)

    def converted(calls: list[Any]) -> list[Any]:
        result: list[Any] = []
        for call in calls:
            if len(call) == 2:
                flag = slot(call[0])
                result.append((flag, converted(call[1])))
                continue
            func, given, spec, results = call
            taken = [slot(x) for x in given]
            known = {id(x) for x in given}
            inside.update(
                id(x) for x in results if isinstance(x, Tensor) and id(x) not in places and id(x) not in known
            )
            result.append((func, taken, spec, [slot(x).place if isinstance(x, Tensor) else None for x in results]))
        return result

    made = converted(calls)
    return made, [slot(x) for x in outputs]
