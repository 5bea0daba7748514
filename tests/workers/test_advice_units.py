"""The untimed part of advise on simulated workers, in small: what each is given, what the journal has, and no more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.judges import judge_for
from helpers.simulated_pool import SimulatedPool, at_random, opened
from specexp import config
from specexp.advise import candidates
from specexp.advise.candidates import PLAIN
from specexp.advise.untimed import OUTPUTS, Untimed
from specexp.advise.workers import measuring
from specexp.advise.workers.measuring import PromptUnit
from specexp.decoding.draft_length import RelativeCosts
from specexp.errors import WorkerError
from specexp.evaluation import measured_costs, preparation
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import SpecexpContender
from specexp.judge import features
from specexp.storage.journal import Journal, Key
from specexp.workers.settings import WorkerSettings

FLAGS = {
    "methods": "speculative,autojudge", "gamma": "1,3", "limit": "3", "max_new_tokens": "8", "temperature": "0.8",
}  # fmt: skip
OWN_TEMPERATURE = ("draft", "drafts at temperature 0.3")
EXPENSIVE = RelativeCosts(9.0, (1.0,) * 17)  # calls of a draft that hardly ever pays


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimulatedPool]]:
    """Workers are simulated; these are the pools that were made."""
    result: list[SimulatedPool] = []
    with opened(result) as crew:
        monkeypatch.setattr(measuring, "crew", crew)
        yield result


def prepared_of(folder: Path, costs: RelativeCosts | None = None, **flags: str) -> Prepared:
    judge = judge_for("toy_quick", features.mode("both"))
    given = config.resolve("toy_quick", {**FLAGS, "judge": str(folder), **flags})
    prepared = preparation.prepare(candidates.validated(given, with_trees=False), {str(folder): judge})
    return prepared if costs is None else measured_costs.adapted(prepared, costs)


def in_one(prepared: Prepared) -> dict[Key, Any]:
    """Every measurement, by its key, as this process makes them."""
    plain = next(each for each in prepared.settings if each.config.label == PLAIN)
    untimed = Untimed(
        prepared, SpecexpContender(PLAIN, prepared, plain, prepared.experiment.temperature, time.perf_counter)
    )
    result: dict[Key, Any] = {}
    for index in range(len(prepared.prompts)):
        for kind in untimed.kinds:
            result[(*kind, index)] = untimed.measure(kind, index, result.get((*OUTPUTS, index), ()))
    return result


def journal_of(measured: dict[Key, Any]) -> Journal:
    journal = Journal()
    for key, value in measured.items():
        journal.unit(key, lambda value=value: value)
    return journal


def contents(journal: Journal, keys: dict[Key, Any]) -> dict[Key, Any]:
    return {key: journal.unit(key, lambda: None) for key in keys if key in journal}


@pytest.mark.parametrize("adapting", [False, True])
def test_the_journal_has_what_one_process_measures_whoever_dies(
    adapting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = EXPENSIVE if adapting else None
    prepared = prepared_of(tmp_path, costs, **({"gamma": "auto"} if adapting else {}))
    pools: list[SimulatedPool] = []
    with opened(pools, dies=at_random(1, 0.4, 3)) as crew:
        monkeypatch.setattr(measuring, "crew", crew)
        journal = Journal()
        measuring.measure(WorkerSettings(2), prepared, costs, journal)
    expected = in_one(prepared)
    assert contents(journal, expected) == expected
    assert journal.count({"plain", "draft", "watched"}) == len(expected), "nothing else, and nothing that is timed"
    assert {key[0] for key in expected} == {"plain", "draft", "watched"}
    assert pools[0].num_died > 1
    assert pools[0].closed, "workers end before anything is timed"


def test_a_resume_measures_what_is_missing_along_the_outputs_that_are_known(
    tmp_path: Path, pools: list[SimulatedPool]
) -> None:
    prepared = prepared_of(tmp_path)
    expected = in_one(prepared)
    of_first = {key: value for key, value in expected.items() if key[-1] == 0}
    journal = journal_of({**of_first, (*OUTPUTS, 2): expected[*OUTPUTS, 2]})
    measuring.measure(WorkerSettings(2), prepared, None, journal)
    kinds = [key[:-1] for key in of_first]
    assert sorted(pools[0].done, key=lambda unit: unit.index) == [
        PromptUnit(1, kinds),
        PromptUnit(2, [kind for kind in kinds if kind != OUTPUTS], expected[*OUTPUTS, 2]),
    ]
    assert contents(journal, expected) == expected
    measuring.measure(WorkerSettings(2), prepared, None, journal)
    assert len(pools) == 1, "nothing is missing: no worker is started"


def test_drafts_of_another_temperature_are_measured_at_it(tmp_path: Path) -> None:
    measured = in_one(prepared_of(tmp_path, methods="speculative", judge="", draft_temperature="0.3"))
    assert {key[:-1] for key in measured} == {OUTPUTS, ("draft",), OWN_TEMPERATURE}
    assert all(measured[*OWN_TEMPERATURE, index] != measured["draft", index] for index in range(3))


def test_a_prompt_that_kills_its_workers_ends_the_command_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, journal = prepared_of(tmp_path), Journal()
    expected = in_one(prepared)
    with opened([], dies=lambda worker, unit: unit is not None and unit.index == 1) as crew:
        monkeypatch.setattr(measuring, "crew", crew)
        with pytest.raises(WorkerError, match=r"failed at prompt 'toy-1': 3 workers died at it \(worker \d+ was kill"):
            measuring.measure(WorkerSettings(2), prepared, None, journal)
    assert contents(journal, expected) == {key: value for key, value in expected.items() if key[-1] != 1}
