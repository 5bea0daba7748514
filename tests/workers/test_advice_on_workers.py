"""The untimed part of advise on simulated workers: what the journal of one process has, before anything is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from entrypoints import advise as entry
from helpers.cli_runner import invoke, is_refused
from helpers.judges import judge_for
from helpers.simulated_pool import SimulatedPool, at_random, simulated_command
from specexp.advise import advice
from specexp.advise.workers import measuring
from specexp.judge import features

SMALL = (
    "--experiment", "toy_quick", "--limit", "3", "--max-new-tokens", "8", "--gamma", "1,2", "--tree-budget", "none",
    "--repeats", "1", "--judge", "judge",
)  # fmt: skip
UNTIMED = ("plain", "draft", "watched")


def advise(*arguments: str) -> Result:
    return invoke(entry.command, *arguments)


def units(folder: str) -> dict[str, Any]:
    """The journal's measurements without a clock, by key."""
    lines = [json.loads(line) for line in Path(folder, "progress.jsonl").read_text().splitlines()]
    return {json.dumps(each["key"]): each["value"] for each in lines if each["key"][0] in UNTIMED}


@pytest.fixture
def on_simulated(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> Callable[..., tuple[Result, SimulatedPool]]:
    """Runs advise on simulated workers."""
    judge_for("toy_quick", features.mode("both")).save(workplace / "judge")

    pools: list[SimulatedPool] = []
    real = advice.measure

    def measure(*arguments: Any, **more: Any) -> Any:
        assert all(pool.closed for pool in pools), "timed while there are workers"
        return real(*arguments, **more)

    monkeypatch.setattr(advice, "measure", measure)

    return simulated_command(monkeypatch, measuring, advise, pools)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--temperature", "0.8")], ids=["greedy", "sampled"])
def test_what_is_not_timed_is_that_of_one_process(more: tuple[str, ...], workplace: Path, on_simulated: Any) -> None:
    assert advise(*SMALL, *more, "--output", "one").exit_code == 0
    for name, how in (("of_3", {}), ("killed", {"dies": at_random(2, 0.4, 4)})):
        result, pool = on_simulated(*SMALL, *more, "--output", name, number=3, **how)
        assert result.exit_code == 0, result.output
        assert (pool.num_died > 0) == bool(how)
        assert units(name) == units("one")
    assert {json.loads(key)[0] for key in units("one")} == set(UNTIMED)


@pytest.mark.slow
def test_a_prompt_that_kills_its_workers_ends_the_command_and_a_resume_goes_on(
    workplace: Path, on_simulated: Any
) -> None:
    fatal = lambda worker, unit: unit is not None and unit.index == 1  # noqa: E731
    result, pool = on_simulated(*SMALL, "--output", "out", dies=fatal)
    assert result.exit_code == 2, result.output
    words = "error: advise predicts from every prompt, and failed at prompt 'toy-1': 3 workers died at it (worker"
    assert words in result.output
    assert len(pool.done) == 2
    result, pool = on_simulated(*SMALL, "--output", "out", "--resume")
    assert result.exit_code == 0, result.output
    assert [unit.index for unit in pool.done] == [1]


def test_workers_of_served_engines_are_refused(workplace: Path, on_simulated: Any) -> None:
    (workplace / "given.yaml").write_text("engine: {url: 'http://127.0.0.1:1/v1', model: x, methods: {a: {}}}\n")
    result = advise("--config", "given.yaml", "--workers", "2")
    is_refused(result, "workers is 2, but a served engine has workers of its own; leave it out.")
