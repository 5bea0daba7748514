"""Calls are timed as decoding makes them: events on the device that nothing waits for, or a clock after a wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.native import cuda_graphs
from specexp.lm.native.graph_capture import Recordings
from specexp.lm.toy import ToyModel
from specexp.profiling import call_bench, call_costs
from specexp.profiling.call_costs import TreeRound
from specexp.profiling.timers import ClockTimer, EventTimer, mean_of, timer_for


class FakeStream:
    """A device that works through what it was given: an event gets its time when it is waited for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.given = 0.0  # seconds of work that was launched

    def event(self) -> FakeEvent:
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.at = 0.0
        self.done = False

    def record(self) -> None:
        self.stream.log.append("record")
        self.at = self.stream.given

    def synchronize(self) -> None:
        self.stream.log.append("wait")
        self.done = True

    def elapsed_time(self, last: FakeEvent) -> float:
        assert last.done, "an event is read before it has happened"
        return 1e3 * (last.at - self.at)


def test_events_are_read_after_all_calls_were_made() -> None:
    stream = FakeStream()
    timer = EventTimer("cuda:0", stream.event)
    spans = []
    for work in (2.0, 3.0):
        running = timer.start()
        stream.given += work
        stream.log.append("call")
        spans.append(running.stop())
    assert stream.log == ["record", "call", "record", "record", "call", "record"], "nothing waits between calls"
    assert [seconds() for seconds in spans] == pytest.approx([2.0, 3.0])
    assert mean_of(spans[1], 4)() == pytest.approx(0.75)


def test_a_clock_is_read_after_the_device_is_done() -> None:
    log: list[str] = []
    now = iter([1.0, 3.5])

    def clock() -> float:
        log.append("clock")
        return next(now)

    running = ClockTimer(clock, lambda: log.append("wait")).start()
    log.append("call")
    seconds = running.stop()
    assert log == ["wait", "clock", "call", "wait", "clock"]
    assert seconds() == seconds() == pytest.approx(2.5)


def test_only_models_on_cuda_are_timed_by_events() -> None:
    plain: Any = SimpleNamespace(device=torch.device("cpu"), wait=lambda: None)
    there: Any = SimpleNamespace(device=torch.device("cuda", 1), wait=lambda: None)
    assert isinstance(timer_for(plain, float), ClockTimer)
    assert isinstance(timer_for(there, float), EventTimer)
    assert isinstance(timer_for(ToyModel(8), float), ClockTimer)


def models(monkeypatch: pytest.MonkeyPatch) -> dict[Any, HFModel]:
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 64)
    made = {"target": build("llama"), "draft": disturbed(build("llama"), 0.06)}
    return {role: HFModel(module, role, graphs=Tape()) for role, module in made.items()}


def test_a_round_is_launched_whole_before_anything_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded chains, verifications and trees, on a stream of which only the end of a repeat asks."""
    stream = FakeStream()
    pair = models(monkeypatch)
    monkeypatch.setattr(call_bench, "timer_for", lambda model, clock: EventTimer("cuda:0", stream.event))
    replay = Recordings.answer

    def counted(graphs: Any, key: Any, *given: Any) -> Any:
        stream.given += 1.0
        stream.log.append(str(key[0]))
        return replay(graphs, key, *given)

    monkeypatch.setattr(Recordings, "answer", counted)
    monkeypatch.setattr(HFModel, "wait", lambda model: pytest.fail("a call was waited for"))
    costs = call_costs.measure(pair, [5, 9, 11], [2], [TreeRound(12, 3, 4)], 2)
    assert costs.by_events
    assert costs.target == pytest.approx({1: 1.0, 3: 1.0}), "a replay for each"
    assert costs.draft_step == pytest.approx(0.5), "a chain of two is one replay"
    assert costs.tree_draft == pytest.approx({4: 0.0}), "the growth is one replay, as the root's call is"
    assert costs.tree_target == pytest.approx({13: 1.0})
    first = stream.log.index("wait")
    assert "grow" in stream.log[:first]
    assert {"chain", "draft"} < set(stream.log[:first]), "all calls of the repeat come before its first wait"


def test_a_tree_is_timed_as_it_is_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growth and root of ten and one seconds: three levels after the root cost three each."""
    pair = models(monkeypatch)
    bench = call_bench.CallBench(pair, [5, 9, 11], float)
    spans = {"draft": iter([1.0, 10.0]), "target": iter([7.0])}

    class Told:
        def __init__(self, role: str) -> None:
            self.role = role

        def start(self) -> Told:
            return self

        def stop(self) -> Any:
            seconds = next(spans[self.role])
            return lambda: seconds

    bench._timers = {role: Told(role) for role in pair}  # type: ignore[assignment]
    taken = {key: seconds() for key, seconds in bench.tree(TreeRound(12, 4, 4))}
    assert taken == {("tree_draft", 4): pytest.approx(3.0), ("tree_target", 13): 7.0}
    assert [session.length for session in bench._sessions.values()] == [3, 3], "rewound"
