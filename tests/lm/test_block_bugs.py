"""Seeded bugs in the parts of blocks: the check at load, or a comparison with transformers' forward, shows each."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch

from helpers import tiny_models
from helpers.block_cases import CASES
from helpers.seeded_bugs import BLOCK_BUGS, Bug, mutated

CLOSE = 3e-4
PAIRS = [pytest.param(case, bug, id=bug.name) for case, bugs in BLOCK_BUGS.items() for bug in bugs]


def difference(case: str) -> str | None:
    """What tells the native forward of this model from transformers'; None if nothing does."""
    hf = importlib.import_module("specexp.lm.hf.hf_model")
    branches = importlib.import_module("specexp.lm.model").Branches
    kind, settings = CASES[case]
    made = tiny_models.build(kind, **settings)
    reference = hf.HFModel(copy.deepcopy(made), "reference", forward="transformers")
    model = hf.HFModel(made, "native")
    if model.native is None:
        return str(model.why_not_native)
    sessions = [reference.session(), model.session()]
    feeds: list[tuple[int, Any]] = [(21, None), (1, None), (5, None)]
    feeds.append((3, branches(27, [0, 1, 1], [[0], [0, 1], [0, 2]])))
    for num, tree in feeds:
        tokens = torch.randint(3, 96, (num,), generator=torch.Generator().manual_seed(num))
        expected, actual = (session.feed(tokens, num, False, tree)[0] for session in sessions)
        gap = float((actual - expected).abs().max())
        if not gap < CLOSE:
            return f"{num} tokens differ by {gap:.1e}"
    return None


@pytest.mark.nightly
@pytest.mark.parametrize("case", BLOCK_BUGS)
def test_without_a_bug_there_is_no_difference(case: str) -> None:
    with mutated(None):
        assert difference(case) is None


@pytest.mark.nightly
@pytest.mark.parametrize("case,bug", PAIRS)
def test_a_seeded_bug_shows(case: str, bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    with mutated(bug):
        try:
            found = difference(case)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            if bug.name in str(error):  # it could not be seeded
                raise
            found = f"{type(error).__name__}: {error}"[:120]
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'shown, ' + found if found else 'NOT SHOWN'}", end="")
    assert found is not None
