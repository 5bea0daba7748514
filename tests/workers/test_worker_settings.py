"""The options of workers: what is refused, and in which words."""

from __future__ import annotations

import pytest

from helpers.cli_runner import evaluate, is_refused
from specexp.errors import ConfigError
from specexp.workers import settings
from specexp.workers.settings import WorkerSettings, parse


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "is_installed", lambda name: True)


def test_unset_options_are_no_workers() -> None:
    assert parse({}) is None
    assert parse({"workers": "", "ray": ""}) is None
    assert parse({"workers": "0"}) is None


def test_options_reach_the_settings() -> None:
    assert parse({"workers": "3"}) == WorkerSettings(3, "auto", 0.0, 1.0)
    given = {"workers": "8", "ray": "ray://head:10001", "gpus_per_worker": "0.5", "cpus_per_worker": "4"}
    assert parse(given) == WorkerSettings(8, "ray://head:10001", 0.5, 4.0)
    assert parse(given).threads == 4
    assert WorkerSettings(1, cpus=0.25).threads == 1


@pytest.mark.parametrize(
    "given,words",
    [
        ({"workers": "-1"}, "workers is '-1'; it must be a whole number >= 0 and at most 10000 (0 = this process)."),
        ({"workers": "two"}, "workers is 'two'; it must be a whole number"),
        ({"workers": "2", "ray": "head"}, "ray is 'head'; it must be auto, local, ray://HOST:PORT"),
        ({"workers": "2", "ray": "http://head:1"}, "ray is 'http://head:1'; it must be auto, local"),
        ({"workers": "2", "gpus_per_worker": "1.5"}, "gpus_per_worker is '1.5'; it must be a number >= 0, whole if"),
        ({"workers": "2", "cpus_per_worker": "0"}, "cpus_per_worker is '0'; it must be a number > 0, whole if"),
        ({"ray": "local"}, "ray is local, but workers is not; leave it out, or set workers."),
        ({"workers": "0", "cpus_per_worker": "2"}, "cpus_per_worker is 2.0, but workers is not; leave it out"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(given)
    assert words in str(error.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse({"workers": "x", "ray": "y", "gpus_per_worker": "z"})
    assert len(error.value.faults) == 3


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "is_installed", lambda name: False)
    is_refused(
        evaluate("--workers", "2"), "workers are processes of Ray, which is not installed; pip install 'specexp[ray]'."
    )
