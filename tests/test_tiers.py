"""Which parameter sets of a test run in which tier."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from helpers.tiers import spread

pytest_plugins = ["pytester"]
MATRIX = [{"model": a, "method": b, "rows": c} for a, b, c in product(range(4), range(3), range(2))]


def test_a_few_sets_have_every_value() -> None:
    chosen = [MATRIX[place] for place in spread(MATRIX, 4)]
    assert len(chosen) == 4
    assert {name: {each[name] for each in chosen} for name in MATRIX[0]} == {
        "model": {0, 1, 2, 3}, "method": {0, 1, 2}, "rows": {0, 1},
    }  # fmt: skip


def test_half_of_the_sets_have_every_pair_of_values() -> None:
    chosen = [MATRIX[place] for place in spread(MATRIX, 12)]
    assert len({(each["model"], each["method"]) for each in chosen}) == 12
    assert len({(each["model"], each["rows"]) for each in chosen}) == 8
    assert len({(each["method"], each["rows"]) for each in chosen}) == 6


def test_no_value_is_much_rarer_than_another() -> None:
    chosen = [MATRIX[place] for place in spread(MATRIX, 12)]
    for name in MATRIX[0]:
        uses = Counter(each[name] for each in chosen).values()
        assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize(("most", "places"), [(0, []), (2, [0, 1]), (9, [0, 1, 2])])
def test_of_one_parameter_the_first_are_taken(most: int, places: list[int]) -> None:
    assert spread([{"seed": 0}, {"seed": 1}, {"seed": 2}], most) == places


@pytest.fixture
def collected(pytester: pytest.Pytester) -> pytest.Pytester:
    """Tests of which some are left out of a tier."""
    pytester.makeconftest(
        "from helpers import tiers\nimport pytest\n\n@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_collection_modifyitems(items):\n    tiers.assign(items)\n"
    )
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.at_most(fast=2, slow=3)
        @pytest.mark.parametrize("x", [0, 1, 2, 3, 4, 5, pytest.param(6, marks=pytest.mark.slow)])
        def test_both(x): pass

        SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in (1, 2)]

        @pytest.mark.at_most(slow=1)
        @pytest.mark.parametrize("x", [0, *SLOW])
        def test_slow(x): pass

        @pytest.mark.parametrize("x", [0, 1])
        def test_neither(x): pass

        @pytest.mark.at_most(fast=0, slow=0)
        @pytest.mark.parametrize("device", ["cpu", "cuda"])
        def test_of_gpu(device): pass

        @pytest.mark.at_most(fast=2, slow=0)
        @pytest.mark.parametrize("x", [[], ["a"]])
        @pytest.mark.parametrize("y", ["b", "c"])
        def test_two(x, y): pass
        """
    )
    return pytester


@pytest.mark.slow
@pytest.mark.parametrize(
    ("marks", "names"),
    [
        ("not slow and not nightly", "both[0] both[1] slow[0] neither[0] neither[1] of_gpu[cuda] two[b-x0] two[c-x1]"),
        ("slow and not nightly", "both[2] both[3] both[4] slow[1]"),
        ("nightly", "both[5] both[6] slow[2] of_gpu[cpu] two[b-x1] two[c-x0]"),
    ],
)
def test_each_set_is_in_one_tier(collected: pytest.Pytester, marks: str, names: str) -> None:
    done = collected.runpytest_inprocess("--collect-only", "-q", "-m", marks)
    found = [line.partition("::")[2] for line in done.outlines if "::" in line]
    assert found == [f"test_{name}" for name in names.split()]


@pytest.mark.slow
def test_a_tier_that_takes_no_number_is_refused(pytester: pytest.Pytester, collected: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_wrong="import pytest\n\n@pytest.mark.at_most(nightly=1)\n"
        "@pytest.mark.parametrize('x', [0])\ndef test_it(x): pass\n"
    )
    done = pytester.runpytest_inprocess("test_wrong.py")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*at_most is for the tiers fast=N and slow=N, not for {'nightly'}*"])
