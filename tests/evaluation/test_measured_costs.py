"""costs.json of earlier versions, which has no calls that take in committed tokens, is read and continued."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specexp.errors import OutputError
from specexp.evaluation.measured_costs import check_sizes, costs_of, median_of

OLD: dict[str, Any] = json.loads((Path(__file__).parent.parent / "data/folder_0_1/costs.json").read_text())
NEW = {**OLD, "catch_up": {"1": 1e-4, "2": 2e-4, "3": 4e-4}}
FOLDER: Any = SimpleNamespace(path=Path("out"))


def test_an_earlier_profile_prices_no_catch_up() -> None:
    costs = costs_of(OLD)
    assert costs is not None
    assert (dict(costs.catch_up), costs.more_to_take_in(2), costs.block) == ({}, 0.0, False)
    assert costs.target[3] == OLD["target"]["3"]


def test_a_profile_that_was_begun_before_is_continued_without_it() -> None:
    check_sizes(FOLDER, OLD, NEW)
    both = costs_of(median_of([OLD, NEW, NEW]))
    assert both is not None
    assert both.catch_up == {}


def test_one_with_it_keeps_it_and_must_have_the_same_calls() -> None:
    check_sizes(FOLDER, NEW, NEW)
    costs = costs_of(median_of([NEW, NEW]))
    assert costs is not None
    assert costs.more_to_take_in(2) == pytest.approx(1e-4 / OLD["target"]["1"])
    with pytest.raises(OutputError, match="has costs of other calls than these settings make"):
        check_sizes(FOLDER, NEW, {**NEW, "catch_up": {"1": 1e-4}})
