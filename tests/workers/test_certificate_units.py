"""A certificate's units on simulated workers, in small: each is done once, by its own draws, and has its own result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.simulated_pool import SimulatedPool, at_random
from specexp.certify import certificate, certificate_config, chi_square, invariance, on_workers, places
from specexp.certify.certificate import ORACLE, Certificate
from specexp.certify.certificate_config import CertificateConfig
from specexp.certify.checks import INCONCLUSIVE, PASSED, Check
from specexp.certify.on_workers import Assignment, CertificateJob, OnWorkers
from specexp.certify.own_models import EQUAL, PLAIN, MethodUnit, PlainUnit
from specexp.certify.places import Target, targets_of
from specexp.certify.sampled import NAME, SampleUnit
from specexp.certify.work import Bench, Lost, OneProcess
from specexp.decoding.draft_length import RelativeCosts
from specexp.profiling.time_estimate import Pace
from specexp.storage import environment
from specexp.workers.dispatch import Crew

SMALL = {"limit": "3", "max_new_tokens": "8", "batch": "2"}
SAMPLES = 10  # a place has two units of draws by the method, and two of the control's
EXPENSIVE = RelativeCosts(9.0, (1.0, 1.0, 1.0, 1.0))  # calls of a draft that hardly ever pays
BEGUN = {ORACLE: Check(ORACLE, PASSED, "of toy models: not repeated here")}


@pytest.fixture(autouse=True)
def few_samples_in_many_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few samples tell draws apart; and no worker measures how fast it is."""
    monkeypatch.setattr(chi_square, "LEAST_EXPECTED", 1)
    monkeypatch.setattr(on_workers, "pace_of", lambda subject: Pace(1e-3, 1e-3))


def config_of(method: str = "speculative", **flags: str) -> CertificateConfig:
    return certificate_config.resolve("toy_quick", method, "", {**SMALL, "gamma": "3", **flags})


def in_one(config: CertificateConfig, costs: RelativeCosts | None = None) -> Certificate:
    subject = certificate.prepare(config)
    subject = subject if costs is None else certificate.adapted(subject, costs)
    return certificate.examine(subject, SAMPLES, BEGUN)


def on_simulated(
    config: CertificateConfig, done: dict[str, Check] | None = None, costs: RelativeCosts | None = None,
    noted: list[Check] | None = None, **how: Any,
) -> tuple[Certificate, SimulatedPool]:  # fmt: skip
    pool = SimulatedPool(CertificateJob(config, {}), **how)
    work = OnWorkers(Crew(pool, 3), costs)
    note = None if noted is None else noted.append
    return certificate.examine(certificate.prepare(config), SAMPLES, done or BEGUN, note, work), pool


def at(kind: type, where: Callable[[Any], bool] = lambda unit: True) -> Callable[[int, Any], bool]:
    """Workers die at these units."""
    return lambda worker, each: each is not None and isinstance(each.unit, kind) and where(each.unit)


@pytest.mark.parametrize(("flags", "costs"), [({}, None), ({"gamma": "auto"}, EXPENSIVE)], ids=["fixed", "adapting"])
def test_samples_are_those_of_one_process_whoever_dies(
    flags: dict[str, str], costs: RelativeCosts | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(temperature="0.8", **flags)
    if costs is not None:
        monkeypatch.setattr(places, "PLACES", 1)
    result, pool = on_simulated(config, costs=costs, dies=at_random(1, 0.3, 6))
    assert pool.num_died > 1
    assert result.checks == in_one(config, costs).checks
    assert {each.costs for each in pool.done} == {costs}
    tested = result.checks[-1].details["places"]
    assert [sum(cell["observed"] for cell in each["cells"]) for each in tested] == [SAMPLES] * (1 if costs else 2)


def test_a_greedy_certificate_is_that_of_one_process_in_parts_too() -> None:
    config = config_of("specexec")
    together = at(MethodUnit, lambda unit: len(unit.prompts) > 1)
    result, pool = on_simulated(config, dies=together)
    assert pool.num_died == 1
    assert result.checks == in_one(config).checks
    parts = Assignment(MethodUnit({"a": [1], "b": [2]}, {"a": [3], "b": [4]}), EXPENSIVE).parts
    assert parts == [Assignment(MethodUnit({x: [i]}, {x: [i + 2]}), EXPENSIVE) for i, x in enumerate("ab", 1)]


def test_samples_are_the_same_however_they_are_divided_and_others_with_another_seed() -> None:
    benches = {seed: Bench(certificate.prepare(config_of(temperature="0.8", seed=seed))) for seed in ("0", "1")}
    subject = benches["0"].subject
    texts = {name: PlainUnit(name, ids, False).do(benches["0"])[0] for name, ids in subject.prompts().items()}
    target = targets_of(subject, texts, SAMPLES, OneProcess(subject).share(lambda number: None))[0]
    assert isinstance(target, Target)

    def drawn(start: int, stop: int, seed: str = "0") -> Any:
        return SampleUnit(target, "method/0", range(start, stop), 3).do(benches[seed])

    assert np.array_equal(drawn(0, 10), drawn(0, 5) + drawn(5, 10))
    assert not np.array_equal(drawn(0, 10), drawn(0, 10, "1"))


def test_prompts_that_are_decoded_together_have_their_own_outputs() -> None:
    """Whichever ends first: outputs of other lengths end in another order."""
    bench = Bench(certificate.prepare(config_of("specexec", temperature="0.8", batch="3")))
    prompts = bench.subject.prompts()
    together = MethodUnit(prompts, {name: [] for name in prompts})
    apart = {name: result for part in together.parts for name, result in _done(part, bench).items()}
    assert len({tuple(text) for text, _ in apart.values()}) == len(prompts)
    assert {name: text for name, (text, _) in _done(together, bench).items()} == {
        name: text for name, (text, _) in apart.items()
    }


def _done(unit: MethodUnit, bench: Bench) -> dict[str, Any]:
    result = unit.do(bench)
    assert isinstance(result, dict)
    return result


def test_what_was_lost_is_inconclusive_and_not_noted_so_that_a_resume_does_it_again() -> None:
    config, noted = config_of("specexec"), list[Check]()
    result, _ = on_simulated(config, noted=noted, dies=at(PlainUnit, lambda unit: unit.prompt_id == "toy-1"))
    lost = {check.name: check for check in result.checks if check.verdict == INCONCLUSIVE}
    assert set(lost) == {PLAIN, EQUAL}
    assert all("Left out: prompt 'toy-1': 3 workers died at it" in check.sentence for check in lost.values())
    assert [check.name for check in noted] == [invariance.NAME, NAME]


def test_lost_samples_are_no_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PLACES", 1)
    config = config_of(temperature="0.8")
    result, _ = on_simulated(config, dies=at(SampleUnit, lambda unit: 3 in unit.numbers and unit.tilt is None))
    check = result.checks[-1]
    assert check.verdict == INCONCLUSIVE
    assert check.sentence.startswith("not all samples could be drawn. Left out: samples 1 to ")


def test_a_resume_does_what_no_check_has() -> None:
    config = config_of("specexec")
    whole = in_one(config)
    done = {check.name: check for check in whole.checks if check.name != EQUAL}
    result, pool = on_simulated(config, done)
    assert result.checks == whole.checks
    kinds = [type(each.unit) for each in pool.done]
    assert kinds == [PlainUnit] * 3 + [MethodUnit]
    assert not any(each.unit.reread for each in pool.done if isinstance(each.unit, PlainUnit)), "judged already"
    _, pool = on_simulated(config, {check.name: check for check in whole.checks})
    assert not pool.done


def test_every_run_is_one_step_of_the_bar() -> None:
    config = config_of("specexec")
    ticks: list[int] = []
    pool = SimulatedPool(CertificateJob(config, {}), dies=at_random(3, 0.3, 4))
    subject = certificate.prepare(config)
    prompts = subject.prompts()
    share = OnWorkers(Crew(pool, 2)).share(ticks.append)
    units = [MethodUnit(prompts, {name: [] for name in prompts})]
    results = [each for each in share(units) if not isinstance(each, Lost)]
    assert sum(ticks) == len(prompts)
    assert sum(len(each) for each in results if isinstance(each, dict)) == len(prompts)


def test_workers_are_as_fast_as_all_of_them_and_named_in_the_order_in_which_they_began() -> None:
    described = {worker: {"environment": {"device": f"cpu {worker}"}, "pace": Pace(6.0, 3.0)} for worker in (2, 0, 1)}
    pool: Any = None  # nothing is asked of workers
    work = OnWorkers(Crew(pool, 3, facts=dict(described)))
    assert work.pace() == Pace(2.0, 1.0)
    in_order = [environment.name_of({"device": f"cpu {worker}"}) for worker in range(3)]
    assert list(work.environments()) == in_order
