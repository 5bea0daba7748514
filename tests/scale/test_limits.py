"""What breaks first as runs grow: where the driver's time and memory are used up."""

from __future__ import annotations

from itertools import count

import pytest
from click.testing import CliRunner

from specexp.scale.limits import (
    InstantPool,
    LargeRun,
    bytes_of,
    labels_of,
    limits,
    lines,
    loop_seconds,
    most_workers,
    prompts_of,
)
from specexp.scale.limits_command import command
from specexp.workers.dispatch import Crew

RUN = LargeRun(seconds=2.0, result_bytes=1_000.0, labels_per_prompt=5.0, call_seconds=0.001, memory=2.0**30)


@pytest.mark.parametrize("num_workers", [1, 5])
def test_workers_that_return_at_once_do_every_unit(num_workers: int) -> None:
    outcomes = list(Crew(InstantPool(), num_workers).do(range(50)))
    assert [each.unit for each in outcomes] == list(range(50))
    assert not any(each.failed for each in outcomes)


def test_the_drivers_loop_is_timed_by_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specexp.scale.limits.LEAST_RESULTS", 40)
    ticks = count()
    assert loop_seconds(2, lambda: float(next(ticks))) == 1 / 40
    assert loop_seconds(20, lambda: float(next(ticks))) == 1 / 60


def test_the_driver_is_busy_where_its_results_take_as_long_as_the_prompts_of_all_workers() -> None:
    assert most_workers(lambda workers: 0.001, RUN) == 1_000
    number = most_workers(lambda workers: 0.001 + workers * 2e-6, RUN)
    assert number * (0.002 + number * 2e-6) == pytest.approx(2.0, rel=0.01)
    assert most_workers(lambda workers: 0.003 - workers * 1e-6, RUN) == pytest.approx(
        2 / (0.001 + 0.003 - 256e-6), abs=1
    )


def test_memory_is_what_objects_take() -> None:
    assert 8 + 4 + 4 + 4 + 4 <= bytes_of(prompts_of, 50_000) <= 40, "an offset, a length, a sum, a line, and tokens"
    assert 200 < bytes_of(labels_of, 200) < 2_000


def test_every_limit_is_where_its_resource_is_used_up() -> None:
    by_name = {each.what: each for each in limits(RUN, lambda workers: 0.001)}
    assert by_name["the driver's time"].at == 1_000
    assert by_name["results that wait for an earlier one"].at == pytest.approx(2**30 / 16_000)
    prompts, labels = by_name["prompts in each process"], by_name["labels of a set that is joined"]
    assert prompts.at * bytes_of(prompts_of, 50_000) == pytest.approx(2**30, rel=0.01)
    assert labels.at * 5 * bytes_of(labels_of) == pytest.approx(2**30, rel=0.01)


def test_a_line_for_each_number_of_workers() -> None:
    shown = list(lines(RUN, [1, 500], lambda workers: 0.001))
    assert shown[1].split() == [
        "workers",
        "driver",
        "a",
        "result",
        "results",
        "a",
        "second",
        "of",
        "the",
        "driver's",
        "time",
    ]
    assert [line.split() for line in shown[2:4]] == [
        ["1", "2.00", "ms", "500", "0.1%"],
        ["500", "2.00", "ms", "500", "50.0%"],
    ]
    assert any("1,000 workers" in line for line in shown)


def test_faults_are_one_line_each() -> None:
    result = CliRunner().invoke(command, ["--workers", "x", "--seconds", "0", "--memory", "-1"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: workers is 'x'; it must be whole numbers >= 1, separated by commas.",
        "error: seconds is 0; it must be above 0.",
        "error: memory is -1; it must be above 0.",
    ]
