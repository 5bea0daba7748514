"""Times stretches of calls: by a clock around them, or on CUDA by events in between, without waiting for the device.

A call that is waited for costs more than one among others, up to 1.5 times as much: its launch does not overlap with
the call before it. Decoding waits once a round. An event is recorded between calls and read when all are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from specexp.lm.devices import timing_event
from specexp.lm.model import Model

Seconds = Callable[[], float]  # asked after the last call of a round: it may wait for the device


@runtime_checkable
class OnDevice(Protocol):
    """A model whose tensors are on one device of PyTorch."""

    device: Any


class Running(Protocol):
    """A stretch that has begun."""

    def stop(self) -> Seconds:
        """End it here."""
        ...


class Timer(Protocol):
    """Times stretches of one model's calls."""

    def start(self) -> Running:
        """Begin a stretch."""
        ...


class ClockTimer:
    """A clock, read after the device has done all that it was given."""

    def __init__(self, clock: Callable[[], float], wait: Callable[[], None]) -> None:
        self._clock, self._wait = clock, wait

    def start(self) -> Running:
        self._wait()
        return _ByClock(self._clock(), self._clock, self._wait)


class _ByClock:
    def __init__(self, start: float, clock: Callable[[], float], wait: Callable[[], None]) -> None:
        self._start, self._clock, self._wait = start, clock, wait

    def stop(self) -> Seconds:
        self._wait()
        seconds = self._clock() - self._start
        return lambda: seconds


class EventTimer:
    """Events in the stream of the calls. `make` gives one; the default is CUDA's, on the current stream of `device`."""

    def __init__(self, device: Any, make: Callable[[], Any] | None = None) -> None:
        self._device, self._make = device, make

    def start(self) -> Running:
        return _ByEvents(self._recorded(), self)

    def _recorded(self) -> Any:
        if self._make is not None:
            event = self._make()
            event.record()
            return event
        return timing_event(self._device)


class _ByEvents:
    def __init__(self, first: Any, timer: EventTimer) -> None:
        self._first, self._timer = first, timer

    def stop(self) -> Seconds:
        first, last = self._first, self._timer._recorded()

        def seconds() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3

        return seconds


def timer_for(model: Model, clock: Callable[[], float]) -> Timer:
    """Events for a model on a CUDA device, the clock for any other one."""
    device = model.device if isinstance(model, OnDevice) else None
    if getattr(device, "type", "") == "cuda":
        return EventTimer(device)
    return ClockTimer(clock, model.wait)


def mean_of(seconds: Seconds, calls: int) -> Seconds:
    """Seconds per call of a stretch of so many."""
    return lambda: seconds() / calls
