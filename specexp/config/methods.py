"""Makes settings from a method's preset and given values: one for each draft length, threshold, K and tree budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specexp.config.experiment import (
    CALIBRATED,
    MAX_NGRAM,
    PARALLEL_BRANCHES,
    MethodConfig,
    TreeConfig,
)
from specexp.config.schema import TREE_SHAPE
from specexp.method_specs import spec


def chains(preset: str, found: Mapping[str, Any], given: Mapping[str, Any]) -> list[MethodConfig]:
    """A setting for each draft length and each threshold or K; a label names only what was given several values."""
    method = found["method"]
    facts = spec(method)
    if not facts.drafts:
        return [MethodConfig(method, preset, preset)]
    lengths = {preset: found["gamma"]} if "gamma" not in given else {f"{method}_k{g}": g for g in given["gamma"]}
    bonus = given.get("bonus", found.get("bonus", True))
    dial: list[tuple[str, dict[str, Any]]] = [("", {})]
    if method == "autojudge":
        judge = given.get("judge", found.get("judge", ""))
        thresholds = given.get("threshold", (found.get("threshold", CALIBRATED),))
        dial = [
            (f"_t{t:g}" if t is not None else "_cal", {"threshold": t, "judge": judge})
            for t in (None if t == CALIBRATED else t for t in thresholds)
        ]
    elif method == "topk":
        dial = [(f"_top{k}", {"accept_k": k}) for k in given.get("accept_k", (found["accept_k"],))]
    elif method == "lookup":
        runs = given.get("max_ngram", (found.get("max_ngram", MAX_NGRAM),))
        dial = [(f"_n{n}" if len(runs) > 1 else "", {"max_ngram": n}) for n in runs]
    stops: tuple[float, ...] = (0.0,)
    if "min_draft_probability" in facts.settings:
        stops = given.get("min_draft_probability", (found.get("min_draft_probability", 0.0),))
    named = "threshold" in given or "accept_k" in given or method == "lookup"
    return [
        MethodConfig(
            method, preset, label + (suffix if named else "") + (f"_p{stop:g}" if len(stops) > 1 and stop else ""),
            gamma, bonus=bonus, min_draft_probability=stop, **dialled,
        )
        for label, gamma in lengths.items()
        for suffix, dialled in dial
        for stop in stops
    ]  # fmt: skip


def trees(preset: str, gammas: tuple[int, ...] | None, found: Mapping[str, Any]) -> list[MethodConfig]:
    """A setting for each depth and budget. The depth is gamma, unless `max_depth` sets one for all."""
    method = found["method"]
    more = {key: found[key] for key in TREE_SHAPE if key in found and key not in ("tree_budget", "max_depth")}
    if "max_depth" in found:
        depths = {preset: found["max_depth"]}
    else:
        depths = {preset: found["gamma"]} if gammas is None else {f"{method}_k{gamma}": gamma for gamma in gammas}
    methods = []
    for label, depth in depths.items():
        trees = {label: more.get("parallel_branches", PARALLEL_BRANCHES) * depth}
        if "tree_budget" in found:
            trees = {f"{label}_b{budget}": budget for budget in found["tree_budget"]}
        for name, budget in trees.items():
            methods.append(MethodConfig(method, preset, name, tree=TreeConfig(budget, depth, **more)))
    return methods
