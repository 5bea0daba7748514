"""When speeds of several workers are reported, and when they are pooled."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from specexp.evaluation import speed_groups
from specexp.evaluation.speed_groups import SHARED, SpeedGroup, pooling_p, timing_of
from specexp.metrics import statistics
from specexp.storage.records import Record


def environment(
    device: str = "A100", shared: bool | None = False, driver: str = "1", node: str = "a"
) -> dict[str, Any]:
    worker = {} if shared is None else {"worker": {"shares_device": shared, "driver": driver, "nodes": [node]}}
    return {"models": {"target": {"device_name": device}}, "processor": "a CPU", **worker}


def records(where: dict[str, tuple[int, float]], seed: int = 0) -> list[Record]:
    """So many prompts in each environment, where a setting is about so many times as fast as plain decoding."""
    rng, result = random.Random(seed), []
    for name, (number, gain) in where.items():
        for i in range(number):
            for method, seconds in (("baseline", 1.0), ("speculative", rng.uniform(0.8, 1.25) / gain)):
                result.append(
                    {"prompt_id": f"{name}{i}", "turn": 0, "repeat": 0, "label": method, "method": method,
                     "token_ids": [1] * 10, "seconds": seconds, "prefill_seconds": 0.0, "environment": name,
                     "paired": True}
                )  # fmt: skip
    return result  # type: ignore[return-value]


METRICS = {"speed/speedup": 2.0, "batch/speedup": 2.0, "category/speedup_a": 1.0, "accept/alpha": 0.5}


def test_without_workers_nothing_changes() -> None:
    known = {"x": environment(shared=None), "y": environment("H100", shared=None)}
    timing = timing_of(known, records({"x": (9, 1.0), "y": (9, 3.0)}))
    assert (timing.untimed, timing.notes) == ("", ())
    assert timing.kept(METRICS) == METRICS
    assert timing_of(None, []).kept(METRICS) == METRICS


def test_workers_that_share_a_device_report_no_speed() -> None:
    known = {"x": environment(), "y": environment(shared=True)}
    timing = timing_of(known, records({"x": (9, 2.0), "y": (1, 2.0)}))
    assert timing.untimed == SHARED
    assert timing.kept(METRICS) == {"accept/alpha": 0.5}


def test_an_environment_without_records_does_not_count() -> None:
    known = {"x": environment(), "y": environment(shared=True)}
    assert timing_of(known, records({"x": (9, 2.0)})).untimed == ""


def test_workers_that_are_alike_on_several_nodes_are_one_group() -> None:
    known = {"x": environment(node="a"), "y": environment(node="b")}
    timing = timing_of(known, records({"x": (9, 1.0), "y": (9, 3.0)}))
    assert (timing.untimed, timing.notes) == ("", ())


def test_groups_whose_speed_ups_are_alike_are_pooled() -> None:
    known = {"x": environment(), "y": environment("H100")}
    timing = timing_of(known, records({"x": (30, 2.0), "y": (30, 2.0)}))
    assert timing.untimed == ""
    (note,) = timing.notes
    assert note.startswith("Workers of 2 kinds are pooled: their speed-ups do not differ (p = ")


def test_groups_whose_speed_ups_differ_are_reported_by_themselves() -> None:
    known = {"x": environment(), "y": environment("H100", driver="2")}
    timing = timing_of(known, records({"x": (30, 2.0), "y": (20, 1.5)}))
    assert timing.untimed.startswith("workers are of 2 kinds and their speed-ups differ (p = ")
    assert "speed/speedup" not in timing.kept(METRICS)
    first, second = timing.notes
    assert first.startswith("Group x (A100; 30 prompts), mean speed-ups: speculative ")
    assert second.startswith("Group y (H100; 20 prompts), mean speed-ups: speculative 1.")


def test_of_many_prompts_groups_are_compared_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    known, rows = {"x": environment(), "y": environment("H100")}, records({"x": (60, 2.0), "y": (40, 1.5)})
    monkeypatch.setattr(speed_groups, "LARGE", 100)
    assert "Group x (A100; 60 prompts)" in timing_of(known, rows).notes[0]
    monkeypatch.setattr(speed_groups, "LARGE", 99)
    monkeypatch.setattr(speed_groups, "SAMPLE", 50)
    timing = timing_of(known, rows)
    assert timing.untimed.startswith("workers are of 2 kinds and their speed-ups differ (p = ")
    assert [note.partition(", mean")[0] for note in timing.notes] == [
        "Group x (A100; 30 prompts)",
        "Group y (H100; 20 prompts)",
    ]


def test_shuffles_that_are_drawn_in_parts_are_the_same_shuffles(monkeypatch: pytest.MonkeyPatch) -> None:
    known, rows = {"x": environment(), "y": environment("H100")}, records({"x": (12, 2.0), "y": (9, 1.93)})
    whole = timing_of(known, rows)
    monkeypatch.setattr(statistics, "AT_ONCE", 1_000)
    assert timing_of(known, rows) == whole
    monkeypatch.setattr(speed_groups, "SHUFFLES", 50)
    assert timing_of(known, rows) != whole


def test_p_is_the_least_of_all_settings_and_groups_times_their_number() -> None:
    rng = random.Random(0)

    def group(name: str, gains: dict[str, float]) -> SpeedGroup:
        gain = {label: {f"{name}{i}": rng.uniform(0.8, 1.25) * mean for i in range(8)} for label, mean in gains.items()}
        return SpeedGroup(name, "a CPU", 8, gain)

    groups = [group("x", {"a": 2.0, "b": 2.0}), group("y", {"a": 2.2, "b": 2.0}), group("z", {"a": 2.0, "b": 2.1})]

    def alone(label: str, own: SpeedGroup) -> float:
        """p of one setting, and of one group against the others together."""
        rest = {prompt: gain for each in groups if each is not own for prompt, gain in each.speedups[label].items()}
        sides = [replace(own, speedups={label: own.speedups[label]}), SpeedGroup("others", "", 16, {label: rest})]
        p = pooling_p(sides)
        assert p is not None
        return p

    ps = [alone(label, own) for label in "ab" for own in groups]
    assert len(set(ps)) == 6
    assert 6 * min(ps) < 1
    assert pooling_p(groups) == 6 * min(ps)


def test_a_driver_alone_makes_another_group() -> None:
    known = {"x": environment(driver="1"), "y": environment(driver="2")}
    assert timing_of(known, records({"x": (30, 2.0), "y": (30, 4.0)})).untimed


def test_groups_of_too_few_prompts_are_not_pooled() -> None:
    known = {"x": environment(), "y": environment("H100")}
    timing = timing_of(known, records({"x": (30, 2.0), "y": (1, 2.0)}))
    assert (
        timing.untimed == "workers are of 2 kinds and too few prompts to tell if they are alike, so they are not pooled"
    )


def test_equal_groups_are_told_apart_no_more_often_than_the_level_says() -> None:
    known = {"x": environment(), "y": environment("H100")}
    wrong = sum(bool(timing_of(known, records({"x": (12, 2.0), "y": (12, 2.0)}, seed)).untimed) for seed in range(60))
    assert wrong <= 9  # 3 are expected; more than 9 come once in a thousand
