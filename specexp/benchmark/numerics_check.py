"""What `numerics: invariant` costs beside `fastest`: a target on the same weights twice, measured by turns.

A cost is a ratio of medians. The two differ in how their products and their attention are computed; those of several
prompts together differ in that the invariant ones are not recorded, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from statistics import median

from specexp.decoding.baseline import Baseline
from specexp.decoding.protocol import Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Model
from specexp.lm.native import invariance
from specexp.profiling import call_costs

TURNS = 2  # of what takes seconds: prompts, and several prompts together
Together = Callable[[Mapping[Role, Model]], float]  # seconds of a plain step of several prompts together


class NumericsCheck:
    """A target with `fastest` numerics, and on first use the same one with `invariant` numerics.

    `ids` are a prompt; the calls follow half of it. Raises ModelError in place of a cost where a model or this machine
    allows no invariant numerics.
    """

    def __init__(
        self, target: HFModel, ids: Sequence[int], tree: call_costs.TreeRound, together: Together, repeats: int
    ) -> None:
        self._target, self._ids, self._tree, self._together, self._repeats = target, ids, tree, together, repeats

    @cached_property
    def _twins(self) -> tuple[HFModel, HFModel]:
        invariant = HFModel(self._target.module, f"{self._target.name}, invariant", invariant=True)
        invariance.require(invariant)
        return self._target, invariant

    def costs(self) -> dict[str, Callable[[], float]]:
        """The costs by name, each measured when it is called."""
        return {
            "invariant_step": lambda: self._calls[0],
            "invariant_tree": lambda: self._calls[1],
            "invariant_together": lambda: self._ratio(lambda model: self._together({"target": model})),
            "invariant_prompt": lambda: self._ratio(self._prompt),
        }

    @cached_property
    def _calls(self) -> tuple[float, float]:
        """Costs of a plain step, and of a call that verifies the tree."""
        ids, seconds = self._ids[: len(self._ids) // 2], list[tuple[list[float], list[float]]]()
        for model in self._twins:
            seconds.append(([], []))
            self._call(model, ids)  # records what it needs
        for _ in range(self._repeats):
            for model, (steps, trees) in zip(self._twins, seconds, strict=True):
                step, tree = self._call(model, ids)
                steps.append(step)
                trees.append(tree)
        (steps, trees), (invariant_steps, invariant_trees) = seconds
        return median(invariant_steps) / median(steps), median(invariant_trees) / median(trees)

    def _call(self, model: HFModel, ids: Sequence[int]) -> tuple[float, float]:
        costs = call_costs.measure({"target": model}, ids, (), (self._tree,), repeats=1)
        return costs.target[1], costs.tree_target[self._tree.nodes + 1]

    def _prompt(self, model: HFModel) -> float:
        return Engine({"target": model}).generate(Baseline(Warp()), self._ids, 1, CertainRng()).prefill_seconds

    def _ratio(self, measure: Callable[[HFModel], float]) -> float:
        """The median of `measure` with invariant numerics / with fastest; the first turn of each is left out."""
        turns = [[measure(model) for model in self._twins] for _ in range(TURNS + 1)][1:]
        return median(turn[1] for turn in turns) / median(turn[0] for turn in turns)
