"""SIGTERM as an exception, and blocks of code in which SIGTERM and Ctrl-C wait for the end of the block.

The tracking store has made a run before its id is here: an interruption in between would leave a run that nobody ends.
Such steps are held, each for itself; whoever waits for a store that hangs is interrupted all the same, a little later.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE = 10.0  # seconds that a held step may still take when a signal has come
HELD = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
    """SIGTERM as an exception, not a kill: runs are closed on the way out."""


def terminate(signum: int, frame: object) -> None:
    """A handler of SIGTERM that raises."""
    raise Terminated


class _Held:
    """The handler meanwhile: it notes what came, and lets it through after GRACE."""

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
        """Do for the first signal that came what would have been done; the others asked for the same."""
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
    """Inside, SIGTERM and Ctrl-C wait for the end of the block, at most GRACE seconds; inside another one, for its end.

    Signals come to the main thread alone: in any other this does nothing.
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
    """Between two steps inside `held`: let through what waits."""
    state = _current()
    if state is not None:
        state.deliver()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Inside, signals are held, and work is given up after so many seconds. Raises TimeoutError."""
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
    found = signal.getsignal(signal.SIGTERM)
    return found if isinstance(found, _Held) else None
