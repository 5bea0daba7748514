"""Certificates on simulated workers: the bytes of one process, whoever dies, and what is said of what was lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from entrypoints import certify as entry
from helpers.cli_runner import invoke, is_refused
from helpers.simulated_pool import SimulatedPool, at_random, simulated_command
from specexp.certify import on_workers
from specexp.certify.own_models import MethodUnit, PlainUnit
from specexp.certify.sampled import SampleUnit
from specexp.decoding import specexec

TOY = ("--experiment", "toy_quick", "--gamma", "3", "--limit", "3", "--max-new-tokens", "12")
SAMPLED = ("--temperature", "0.8", "--samples", "300")


def certify(*arguments: str) -> Result:
    return invoke(entry.command, *arguments)


def checks(folder: Path = Path("out")) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads((folder / "certificate.json").read_text())["checks"]}


def at(kind: type, where: Callable[[Any], bool] = lambda unit: True) -> Callable[[int, Any], bool]:
    """Workers die at these units."""
    return lambda worker, each: each is not None and isinstance(each.unit, kind) and where(each.unit)


@pytest.fixture
def on_simulated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, SimulatedPool]]:
    """Runs certify on simulated workers."""
    return simulated_command(monkeypatch, on_workers, certify)


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [("--method", "specexec", "--batch", "2"), ("--method", "speculative", *SAMPLED)],
    ids=["greedy", "sampled"],
)
def test_a_certificate_is_that_of_one_process(more: tuple[str, ...], workplace: Path, on_simulated: Any) -> None:
    assert certify(*TOY, *more, "--output", "one").exit_code == 0
    for name, how in (("of_3", {}), ("killed", {"dies": at_random(1, 0.3, 6)})):
        result, pool = on_simulated(*TOY, *more, "--output", name, number=3, **how)
        assert result.exit_code == 0, result.output
        assert (pool.num_died > 1) == bool(how)
        for file in ("certificate.json", "checks.json", "environments.json"):
            assert (workplace / name / file).read_bytes() == (workplace / "one" / file).read_bytes(), file


@pytest.mark.nightly
def test_drafts_that_adapt_have_one_workers_costs_on_all(workplace: Path, on_simulated: Any) -> None:
    auto = (*TOY, "--gamma", "auto", *SAMPLED)
    result, _ = on_simulated(*auto, "--output", "out")
    assert result.exit_code == 0, result.output
    for name in ("certificate.json", "checks.json"):
        (workplace / "out" / name).rename(workplace / f"{name}.before")
    (workplace / "out/upload.json").unlink()
    assert certify(*auto, "--output", "out", "--resume").exit_code == 0
    for name in ("certificate.json", "checks.json"):
        assert (workplace / "out" / name).read_bytes() == (workplace / f"{name}.before").read_bytes()


@pytest.mark.slow
def test_a_prompt_that_kills_its_workers_makes_a_certificate_inconclusive_until_a_resume(
    workplace: Path, on_simulated: Any
) -> None:
    assert certify(*TOY, "--method", "specexec", "--output", "one").exit_code == 0
    fatal = at(PlainUnit, lambda unit: unit.prompt_id == "toy-2")
    result, pool = on_simulated(*TOY, "--method", "specexec", "--output", "out", dies=fatal)
    assert result.exit_code == 1, result.output
    assert "verdict: INCONCLUSIVE: plain decoding and equality could not decide." in result.output
    for name in ("plain decoding", "equality"):
        assert checks()[name]["verdict"] == "inconclusive"
        assert checks()[name]["numbers"]["prompts"] == 2
        assert "Left out: prompt 'toy-2': 3 workers died at it (worker" in checks()[name]["sentence"]
    assert pool.num_died == 3
    result, _ = on_simulated(*TOY, "--method", "specexec", "--output", "out", "--resume")
    assert result.exit_code == 0, result.output
    assert (workplace / "out/certificate.json").read_bytes() == (workplace / "one/certificate.json").read_bytes()


@pytest.mark.slow
def test_prompts_that_are_decoded_together_are_lost_alone(workplace: Path, on_simulated: Any) -> None:
    fatal = at(MethodUnit, lambda unit: "toy-1" in unit.prompts)
    result, pool = on_simulated(*TOY, "--method", "specexec", "--batch", "2", "--output", "out", dies=fatal)
    assert result.exit_code == 1, result.output
    assert pool.num_died == 1 + 3
    assert checks()["equality"]["numbers"]["prompts"] == 2
    assert checks()["plain decoding"]["verdict"] == "passed"


@pytest.mark.slow
def test_samples_that_are_lost_are_no_certificate(workplace: Path, on_simulated: Any) -> None:
    fatal = at(SampleUnit, lambda unit: 200 in unit.numbers)
    result, _ = on_simulated(*TOY, *SAMPLED, "--output", "out", dies=fatal)
    assert result.exit_code == 1, result.output
    sampled = checks()["chi-square"]
    assert sampled["verdict"] == "inconclusive"
    assert sampled["sentence"].startswith("not all samples could be drawn. Left out: samples 129 to 256 after ")


def test_a_prompt_that_every_check_needs_ends_the_command_if_it_is_the_only_one(
    workplace: Path, on_simulated: Any
) -> None:
    fatal = at(PlainUnit)
    result, _ = on_simulated(*TOY, "--limit", "1", "--method", "specexec", "--output", "out", dies=fatal)
    assert result.exit_code == 2, result.output
    assert "error: every prompt has failed: prompt 'toy-0': 3 workers died at it (worker" in result.output


def test_a_decoder_that_breaks_off_on_a_worker_fails(
    workplace: Path, on_simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise IndexError("node 7 of 3")

    monkeypatch.setattr(specexec.SpecExec, "steps", breaks)
    result, pool = on_simulated(*TOY, "--method", "specexec", "--output", "out")
    assert result.exit_code == 1, result.output
    assert "IndexError: node 7 of 3" in result.output
    assert pool.num_died == 0


def test_workers_of_served_engines_are_refused(workplace: Path, on_simulated: Any) -> None:
    arguments = ("--engine", "http://127.0.0.1:1/v1", "--engine-model", "x", "--against", "http://127.0.0.1:2/v1")
    is_refused(
        certify(*arguments, "--workers", "2"),
        "workers is 2, but a served engine has workers of its own; leave it out.",
    )
