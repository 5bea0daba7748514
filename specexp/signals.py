"""Turns SIGTERM into an exception, and defers SIGTERM and Ctrl-C to the end of a block of code.

The tracking store creates a run before this process knows its id: an interruption in between would leave a run that
nothing ends. Each such step runs within `held`; if the store hangs, the signal takes effect after GRACE seconds.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE = 10.0  # seconds that a held step may still take after a signal
HELD = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
    """Raised on SIGTERM, so that runs are closed before the process exits."""


def terminate(signum: int, frame: object) -> None:
    """Handler for SIGTERM; raises Terminated."""
    raise Terminated


class _Held:
    """The handler within `held`: it records signals, and delivers them after GRACE."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self._pending: list[int] = []

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if not self._pending:
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        self._pending.append(signum)

    def expire(self, signum: int, frame: FrameType | None) -> None:
        self.deliver()

    def deliver(self) -> None:
        """Call the original handler for the first pending signal; the later ones ask for the same and are dropped."""
        if not self._pending:
            return
        signum = self._pending[0]
        self._pending.clear()
        handler = self.before.get(signum, signal.SIG_DFL)
        if callable(handler):
            handler(signum, None)
        elif handler == signal.SIG_DFL:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


@contextmanager
def held() -> Iterator[None]:
    """Within the context, SIGTERM and Ctrl-C wait for its end, at most GRACE seconds; if nested, for the outer end.

    Only the main thread receives signals: in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or _current() is not None:
        yield
        return
    state = _Held()
    alarm = signal.getsignal(signal.SIGALRM)
    try:
        signal.signal(signal.SIGALRM, state.expire)
        for signum in HELD:
            state.before[signum] = signal.getsignal(signum) or signal.SIG_DFL
            signal.signal(signum, state)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for held_signal, handler in state.before.items():
            signal.signal(held_signal, handler)
        signal.signal(signal.SIGALRM, alarm or signal.SIG_DFL)
        state.deliver()


def check() -> None:
    """Deliver pending signals; to be called between two steps within `held`."""
    state = _current()
    if state is not None:
        state.deliver()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Within the context, signals are held, and TimeoutError is raised after `seconds` seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"given up after {seconds:g} seconds")

    with held():
        before = signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def _current() -> _Held | None:
    result = signal.getsignal(signal.SIGTERM)
    return result if isinstance(result, _Held) else None
