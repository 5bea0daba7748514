"""SIGTERM and Ctrl-C wait for the end of a step that the store would otherwise remember alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from specexp import signals
from specexp.signals import Terminated, check, held, limited


@pytest.fixture(autouse=True)
def raising() -> Iterator[None]:
    """The handlers of an entry point, and afterwards those of pytest."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGTERM, signals.terminate)
    yield
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "a timer is left"
    assert signal.getsignal(signal.SIGTERM) is signals.terminate, "a handler is left"
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number,raised", [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_for_the_end(number: int, raised: type[BaseException]) -> None:
    steps = []

    def work() -> None:
        with held():
            send(number)
            steps.append("done")
            with held():
                steps.append("inner")
            steps.append("after the inner one")

    with pytest.raises(raised):
        work()
    assert steps == ["done", "inner", "after the inner one"]
    with pytest.raises(raised):
        send(number)


def test_a_signal_comes_through_between_steps_and_once() -> None:
    steps = []

    def work() -> None:
        with held():
            check()
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            steps.append("first")
            check()
            steps.append("second")

    with pytest.raises(Terminated):
        work()
    assert steps == ["first"]


def test_a_step_that_hangs_is_interrupted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.05)

    def work() -> None:
        with held():
            send(signal.SIGTERM)
            time.sleep(60)

    with pytest.raises(Terminated):
        work()


def test_a_failure_gives_way_to_the_signal() -> None:
    def work(number: int) -> None:
        with held():
            if number:
                send(number)
            raise ValueError("no signal")

    with pytest.raises(Terminated):
        work(signal.SIGTERM)
    with pytest.raises(ValueError, match="no signal"):
        work(0)


def test_what_takes_too_long_is_given_up() -> None:
    def work() -> None:
        with limited(0.05):
            with held():  # as every request is
                pass
            time.sleep(60)

    with pytest.raises(TimeoutError, match="given up"):
        work()
    with limited(60):
        pass
    with pytest.raises(Terminated), limited(60):
        send(signal.SIGTERM)


def test_other_threads_do_their_work() -> None:
    done = []

    def work() -> None:
        with held(), limited(1):
            check()
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
