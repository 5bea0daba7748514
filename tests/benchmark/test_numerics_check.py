"""What invariant numerics cost: ratios of the right things, of models on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from helpers.model_folders import build
from specexp.benchmark.numerics_check import NumericsCheck
from specexp.errors import ModelError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.native.native_forward import NativeForward
from specexp.profiling import call_costs

IDS = list(range(3, 35))
TREE = call_costs.TreeRound(8, 4, 2)


def check(model: HFModel, together: Any = None, repeats: int = 1) -> NumericsCheck:
    return NumericsCheck(model, IDS, TREE, together or (lambda models: 1.0), repeats)


@pytest.mark.slow
def test_every_cost_is_measured_on_the_same_weights() -> None:
    model = HFModel(build("llama"), "target")
    assert model.native is not None
    asked: list[Mapping[str, Any]] = []

    def together(models: Any) -> float:
        asked.append(models)
        return 1.0 if len(asked) % 2 else 3.0

    costs = check(model, together).costs()
    assert all(costs[name]() > 0 for name in ("invariant_step", "invariant_tree", "invariant_prompt"))
    assert costs["invariant_together"]() == 3.0
    fastest, invariant = asked[0]["target"], asked[1]["target"]
    assert fastest is model
    assert invariant.native.invariant
    assert not model.native.invariant
    assert weights(invariant.native) == weights(model.native)
    assert [each["target"] for each in asked] == [fastest, invariant] * 3, "by turns, the first ones to warm up"


def weights(forward: NativeForward) -> set[int]:
    return {linear.weight.data_ptr() for block in forward.blocks for linear in (block.projection, block.out)}  # type: ignore[union-attr]


def test_costs_are_of_medians_of_invariant_calls_over_fastest_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        def __init__(self, seconds: list[tuple[float, float]]) -> None:
            self.left = seconds

    fastest, invariant = Named([(9, 9), (1, 4), (2, 2), (1, 4)]), Named([(9, 9), (3, 6), (3, 8), (50, 6)])
    monkeypatch.setattr(NumericsCheck, "_twins", (fastest, invariant))

    def measured(models: Any, ids: Any, gammas: Any, trees: Any, repeats: int) -> call_costs.Costs:
        assert (list(ids), gammas, trees, repeats) == (IDS[:16], (), (TREE,), 1)
        step, tree = models["target"].left.pop(0)
        return call_costs.Costs(None, {1: step}, {}, {9: tree})

    monkeypatch.setattr(call_costs, "measure", measured)
    costs = check(None, repeats=3).costs()  # type: ignore[arg-type]
    assert costs["invariant_step"]() == pytest.approx(3 / 1)
    assert costs["invariant_tree"]() == pytest.approx(6 / 4)
    assert fastest.left == invariant.left == [], "all is measured once, for both costs"


def test_a_model_without_invariant_numerics_has_the_reason_in_place_of_a_cost() -> None:
    torch.manual_seed(0)
    costs = check(HFModel(build("gpt2"), "target")).costs()
    for name in costs:
        with pytest.raises(ModelError, match="numerics is invariant, but model 'target, invariant' cannot be"):
            costs[name]()
