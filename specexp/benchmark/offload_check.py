"""Measures a target whose layers are offloaded, with random weights: no download.

One process times, in turns: a call of one token and calls that verify trees, with layers that the streamed offload
brings and with those that accelerate's hooks bring; the bytes of such a call copied alone; a call of one token without
any copy; and the draft's calls. From these follow the share of the bandwidth that a call reaches, v(n), and tokens per
second at an assumed acceptance. accelerate's hooks copy from the same host memory, pinned on CUDA, which makes them
faster than from memory of their own; on a CPU they copy nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from specexp.benchmark import hardware_check, hardware_table, offload_models, offload_table
from specexp.benchmark.offload_models import OffloadedTarget
from specexp.benchmark.offload_table import OffloadNumbers
from specexp.decoding.protocol import Role
from specexp.errors import first_line
from specexp.lm.model import Model
from specexp.lm.out_of_memory import is_exhausted
from specexp.lm.streaming.streamed_layers import StreamedLayers
from specexp.lm.streaming.transports import host_bytes
from specexp.profiling.call_bench import ROW, CallBench, Key
from specexp.profiling.call_costs import Costs
from specexp.profiling.timers import ClockTimer, Seconds, timer_for

PATIENCE = 40.0  # seconds after which no further repeat starts
STAYS = "no layer comes at a call: all stay on the device"


@dataclass(frozen=True, slots=True)
class OffloadCheck:
    """What is measured: a shape whose target is offloaded (`offload` is cpu or disk, `offload_memory` GiB of layers
    stay on the device) after a prompt of `context` tokens; a chain of `gamma`; an assumed `acceptance` in (0, 1)."""

    shape: str = "llama-8b-1b"
    device: str = "cpu"
    dtype: str = "bfloat16"
    gamma: int = 4
    offload: str = "cpu"
    offload_memory: float = 0.0
    acceptance: float = 0.8
    context: int = 512
    repeats: int = 5


def measure(check: OffloadCheck) -> dict[str, Any]:
    """All numbers, as JSON: seconds, bytes, and ratios of them; where memory is short, empty cells with the reason."""
    try:
        draft = hardware_check.build(hardware_check.HardwareCheck(check.shape, check.device, check.dtype), ("draft",))[
            "draft"
        ]  # before the target, whose layers take what it leaves
        target = offload_models.build(check.shape, check.device, check.dtype, check.offload, check.offload_memory)
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        return unmeasured(check, f"memory does not suffice for the models: {first_line(error)}")
    numbers, repeats = _numbers(target, draft, check)
    return _result(check, numbers, {
        "models": {"target": target.streamed.facts(), "draft": draft.facts()},
        "repeats": repeats,
        "offload": {**storage(target), "said": storage_line(target, check.offload)},
    })  # fmt: skip


def unmeasured(check: OffloadCheck, reason: str) -> dict[str, Any]:
    """What `measure` would give, with every measured cell empty."""
    return _result(check, OffloadNumbers(failed={"all": reason}), {"models": {}, "repeats": 0, "offload": {"said": ""}})


def storage(target: OffloadedTarget) -> dict[str, Any]:
    """Where the layers are: how many come and how many stay, their bytes, and whether they share storage."""
    streamed = _streamed(target)
    return {
        "layers": len(streamed.coming) + len(streamed.resident),
        "resident_layers": len(streamed.resident),
        "bytes_needed": target.needed,
        "bytes_available": target.available,
        "shared_storage": target.shared,
    }


def storage_line(target: OffloadedTarget, kind: str) -> str:
    """Says where the layers are, and if they share storage."""
    place = "host memory" if kind == "cpu" else "disk"
    num = len(_streamed(target).coming)
    if not num:
        return f"{STAYS}."
    have = (
        f"{num} layers come at each call, which need {target.needed / 1e6:,.1f} MB of {place};"
        f" {target.available / 1e6:,.1f} MB are available"
    )
    if not target.shared:
        return f"{have}: each layer has weights of its own."
    return f"{have}: the layers share storage, one layer's weights; each layer's copy moves all of its bytes."


def table(result: Mapping[str, Any]) -> str:
    """The table as it is printed."""
    check, facts = result["check"], result["models"].get("target")
    head = f"shape {check['shape']}, torch {result['torch']}, transformers {result['transformers']}"
    if facts:
        head = f"{facts['device_name']}, {facts['dtype']}, {head}"
    layers = f"layers offloaded to {check['offload']}, {check['offload_memory']:g} GiB of them stay on the device"
    rates = f"tokens per second at an assumed acceptance of {check['acceptance']:g}; computed, not decoded"
    said = [result["offload"]["said"], result["driver"]]
    return "\n".join([hardware_table.text("\n".join([head, layers, rates]), result["lines"]), *filter(None, said)])


def _streamed(target: OffloadedTarget) -> StreamedLayers:
    assert target.offload.streamed is not None
    return target.offload.streamed


def _result(check: OffloadCheck, numbers: OffloadNumbers, more: Mapping[str, Any]) -> dict[str, Any]:
    lines = offload_table.quantities(numbers, check.acceptance, check.gamma, check.offload == "disk")
    speeds = offload_table.speeds(numbers, check.acceptance, check.gamma)
    sizes = (1, *offload_table.NODES)
    return {
        **hardware_check.described(check),
        **more,
        "bytes_per_call": numbers.bytes_per_call,
        "copies_per_call": numbers.copies_per_call,
        "copy_bytes_per_second": numbers.copy_bandwidth,
        "read_bytes_per_second": numbers.read_bandwidth,
        "seconds": {
            "call": numbers.call,
            "call_by_hooks": numbers.hooked.target.get(1) if numbers.hooked else None,
            "transfer": numbers.transfer,
            "compute": numbers.compute,
            "max_transfer_compute": numbers.bound,
            "draft": {each.name: each.draft for each in speeds},
            "target": {each.name: each.target for each in speeds},
        },
        "share_of_bandwidth": numbers.share,
        "v": {str(n): numbers.v(n) for n in sizes},
        "v_by_hooks": {str(n): numbers.v(n, True) for n in sizes},
        "expected_tokens": {each.name: each.expected for each in speeds},
        "tokens_per_second": {each.name: each.tokens_per_second for each in speeds},
        "wanted": {"share_of_bandwidth": offload_table.SHARE, "v": offload_table.SIZE_COSTS},
        "table": [line.as_json() for line in lines],
        "lines": [line.line() for line in lines],
    }


@dataclass(slots=True)
class _Attempts:
    """Does parts of the measurement: one that fails is not tried again, and `failed` has its reason."""

    failed: dict[str, str] = field(default_factory=dict)

    def done(self, name: str, work: Callable[[], None], first: str, any_error: bool = False) -> bool:
        """Do this part, unless it or the part `first` failed. Errors other than short memory pass, unless any count."""
        if {name, first} & self.failed.keys():
            return False
        try:
            work()
        except Exception as error:
            exhausted = isinstance(error, RuntimeError | MemoryError) and is_exhausted(error)
            if not (exhausted or any_error):
                raise
            self.failed[name] = f"{'memory does not suffice: ' if exhausted else ''}{first_line(error)}"
            return False
        return True


@dataclass(slots=True)
class _Timed:
    """The calls of one target, with or without a draft: seconds by kind and size. Parts' names are `first`, the calls
    of one token, and those of further calls."""

    models: Mapping[Role, Model]
    ids: Sequence[int]
    attempts: _Attempts
    first: str
    any_error: bool = False  # accelerate is not ours: where it fails, the rest is measured
    seconds: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    bench: CallBench | None = None

    def run(self, name: str, calls: Callable[[CallBench], Iterable[tuple[Key, Seconds]]]) -> None:
        """Make these calls."""

        def work() -> None:
            if self.bench is None:
                self.bench = CallBench(self.models, self.ids, time.perf_counter)
            for key, seconds in [(key, seconds()) for key, seconds in list(calls(self.bench))]:
                self.seconds[key].append(seconds)

        if not self.attempts.done(name, work, self.first, self.any_error):
            self.bench = None  # its sessions may have half of a call

    def costs(self) -> Costs | None:
        """Medians; None if no call of one token was timed."""

        def sizes(kind: str) -> dict[int, float]:
            return {n: _middle(each) for (what, n), each in self.seconds.items() if what == kind}

        if ("target", 1) not in self.seconds:
            return None
        return Costs(sizes("draft").get(1), sizes("target"), sizes("tree_draft"), sizes("tree_target"))


class _Copies:
    """The bytes of a call: those that the streamed offload moves, and as many moved with nothing else to do."""

    def __init__(self, streamed: StreamedLayers, model: Model, on_disk: bool) -> None:
        self._streamed, self._on_disk = streamed, on_disk
        self._timer, self._clock = timer_for(model, time.perf_counter), ClockTimer(time.perf_counter, model.wait)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._calls = self._copies = self._bytes = 0

    def counted(self, bench: CallBench) -> list[tuple[Key, Seconds]]:
        """Plain steps, whose copies are counted."""
        stream, transport = self._streamed.stream, self._streamed.transport
        if stream is None or transport is None:
            return list(bench.plain())
        copies, moved = stream.num_copies, transport.num_bytes
        result = list(bench.plain())
        self._calls += 2 * ROW  # as many untimed ones first
        self._copies += stream.num_copies - copies
        self._bytes += transport.num_bytes - moved
        return result

    def alone(self) -> None:
        """Time the copies of as many layers of the same sizes from two buffers to two, and from disk their reading."""
        layers = list(self._streamed.coming.values())
        if not layers:
            return
        most, device = max(layer.size for layer in layers), self._streamed.device
        host = [host_bytes(most, device.type == "cuda").fill_(1) for _ in range(2)]
        buffers = [torch.empty(most, dtype=torch.uint8, device=device) for _ in range(2)]
        running = self._timer.start()
        for number, layer in enumerate(layers):
            size = layer.size
            buffers[number % 2][:size].copy_(host[number % 2][:size], non_blocking=True)
        self._seconds["copy"].append(running.stop()())
        if self._on_disk:
            running = self._clock.start()
            for number, layer in enumerate(layers):
                layer.fill(host[number % 2])
            self._seconds["read"].append(running.stop()())

    @property
    def bytes_per_call(self) -> float | None:
        return self._bytes / self._calls if self._bytes else None

    @property
    def copies_per_call(self) -> float | None:
        return self._copies / self._calls if self._copies else None

    def bandwidth(self, kind: str) -> float | None:
        """Bytes per second of `copy` or `read`; None if it was not measured."""
        total = sum(layer.size for layer in self._streamed.coming.values())
        return total / _middle(self._seconds[kind]) if self._seconds[kind] else None


def _middle(seconds: Sequence[float]) -> float:
    """The median without the first one, which warms up, if there are several."""
    return median(seconds[1:] or seconds)


def _numbers(target: OffloadedTarget, draft: Model, check: OffloadCheck) -> tuple[OffloadNumbers, int]:
    """Everything in turns, and the number of repeats."""
    ids = [3 + (7 * i) % 200 for i in range(check.context)]
    attempts, streamed = _Attempts(), _streamed(target)
    ours = _Timed({"target": target.streamed, "draft": draft}, ids, attempts, "plain")
    hooked = _Timed({"target": target.hooked}, ids, attempts, "hooked", any_error=True)
    resident = _Timed({"target": target.resident}, ids, attempts, "compute")
    copies = _Copies(streamed, target.streamed, check.offload == "disk")
    if not streamed.coming:
        attempts.failed |= {"copies": STAYS, "hooked": STAYS}
    begun, repeats = time.perf_counter(), 0
    while repeats <= check.repeats and time.perf_counter() - begun < PATIENCE:
        ours.run("plain", copies.counted)
        hooked.run("hooked", CallBench.plain)
        attempts.done("copies", copies.alone, "plain")
        resident.run("compute", CallBench.plain)
        ours.run(f"chain_{check.gamma}", lambda bench: bench.chain(check.gamma))
        for tree in offload_table.trees(check.acceptance):
            for timed, name in ((ours, f"tree_{tree.nodes}"), (hooked, f"hooked_tree_{tree.nodes}")):
                timed.run(name, partial(CallBench.tree, tree=tree.round))
        repeats += 1
    in_memory = resident.costs()
    return OffloadNumbers(
        ours.costs(), hooked.costs(), in_memory.target[1] if in_memory else None,
        copies.bytes_per_call, copies.copies_per_call, copies.bandwidth("copy"), copies.bandwidth("read"),
        attempts.failed,
    ), repeats  # fmt: skip
