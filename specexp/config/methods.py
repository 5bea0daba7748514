"""Makes settings from a method's preset and given values: one for each draft length, threshold, K and tree budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from specexp.config.experiment import (
    CALIBRATED,
    MAX_GAMMA,
    MAX_NGRAM,
    PARALLEL_BRANCHES,
    SUFFIX_FACTOR,
    SUFFIX_MIN_PROBABILITY,
    MethodConfig,
    TreeConfig,
)
from specexp.config.parsers import AUTO_GAMMA
from specexp.config.schema import SETTINGS, TREE_SHAPE
from specexp.engines.served_methods import SERVED, ServedMethod
from specexp.errors import unknown
from specexp.lm.runtime import FASTEST
from specexp.method_specs import settings_of, spec


def chains(preset: str, parsed: Mapping[str, Any], given: Mapping[str, Any]) -> list[MethodConfig]:
    """A setting for each draft length and each threshold or K; a label names only what was given several values."""
    method = parsed["method"]
    facts = spec(method)
    proposers = given.get("proposers", parsed.get("proposers", _DEFAULTS["proposers"]))
    settings = settings_of(method, proposers if "proposers" in facts.settings else "")
    if not facts.drafts:
        return [MethodConfig(method, preset, preset)]
    lengths = {preset: parsed["gamma"]} if "gamma" not in given else {f"{method}_k{g}": g for g in given["gamma"]}
    variants: list[tuple[str, dict[str, Any]]] = [("", {})]
    if "judge" in settings:
        variants = _thresholds(parsed, given)
    elif "accept_k" in settings:
        variants = _likeliest(parsed, given)
    elif "max_ngram" in settings:
        ngrams = given.get("max_ngram", (parsed.get("max_ngram", MAX_NGRAM),))
        variants = [(f"_n{n}" if len(ngrams) > 1 else "", {"max_ngram": n}) for n in ngrams]
    if "threshold" not in given and "accept_k" not in given and "max_ngram" not in settings:
        variants = [("", overrides) for _, overrides in variants]
    axes = [variants, *(_values(key, given, parsed) for key in _SUFFIXES if key in settings)]
    bonus = given.get("bonus", parsed.get("bonus", True))
    methods = []
    for (label, gamma), *chosen in product(lengths.items(), *axes):
        overrides = {key: value for _, each in chosen for key, value in each.items()}
        name = label + "".join(suffix for suffix, _ in chosen)
        if gamma == AUTO_GAMMA:
            gamma = overrides["max_gamma"] = given.get("max_gamma", parsed.get("max_gamma", MAX_GAMMA))
        methods.append(MethodConfig(method, preset, name, gamma, bonus=bonus, **overrides))
    return methods


def _values(key: str, given: Mapping[str, Any], parsed: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each value of a setting with the suffix of its label, which only several values have."""
    values = given.get(key)
    if values is None and (preset := parsed.get(key, _DEFAULTS.get(key))) is not None:
        values = SETTINGS[key].parse(preset)
    values = values if isinstance(values, tuple) else () if values is None else (values,)
    # With a gamma that is given, labels do not begin with the preset's name, which tells these from the method's own.
    from_preset = key in ("rule", "accept_margin") or (key == "draft_temperature" and key in parsed)
    named = len(values) > 1 or (from_preset and "gamma" in given)
    suffix = _SUFFIXES[key]
    return [(suffix(value) if named else "", {key: value}) for value in values] or [("", {})]


_DEFAULTS: Mapping[str, Any] = {
    "suffix_factor": SUFFIX_FACTOR, "suffix_min_probability": SUFFIX_MIN_PROBABILITY, "proposers": "suffix,draft",
    "distance": "js",
}  # fmt: skip
# The settings of a chain that may have several values, in the order of the label's suffixes.
_SUFFIXES: Mapping[str, Callable[[Any], str]] = {
    "min_draft_probability": lambda value: f"_p{value:g}" if value else "",
    "proposers": lambda value: "",
    "min_match": lambda value: f"_m{value}",
    "suffix_factor": lambda value: f"_f{value:g}",
    "suffix_min_probability": lambda value: f"_s{value:g}" if value else "",
    "suffix_memory": lambda value: "" if value == "prompt" else f"_{value}",
    "draft_temperature": lambda value: "" if value is None else f"_dt{value:g}",
    "rule": lambda value: "" if value == "token" else f"_{value}",
    "distance": lambda value: f"_{value}",
    "accept_margin": lambda value: f"_m{value:g}",
    "accept_epsilon": lambda value: f"_e{value:g}",
    "accept_delta": lambda value: f"_d{value:g}",
    "accept_entropy": lambda value: f"_h{value:g}",
    "accept_window": lambda value: f"_w{value}",
    "accept_distance": lambda value: f"_d{value:g}",
}


def _thresholds(parsed: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each threshold of a judge, with the suffix of its label."""
    judge = given.get("judge", parsed.get("judge", ""))
    thresholds = given.get("threshold", (parsed.get("threshold", CALIBRATED),))
    return [
        (f"_t{t:g}" if t is not None else "_cal", {"threshold": t, "judge": judge})
        for t in (None if t == CALIBRATED else t for t in thresholds)
    ]


def _likeliest(parsed: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each K of Top-K, with the suffix of its label."""
    return [(f"_top{k}", {"accept_k": k}) for k in given.get("accept_k", (parsed["accept_k"],))]


def trees(preset: str, given: Mapping[str, Any], parsed: Mapping[str, Any]) -> list[MethodConfig]:
    """A setting for each depth, budget and dial of its rule. The depth is gamma, unless `max_depth` sets one."""
    method, gammas = parsed["method"], given.get("gamma")
    parsed = {**parsed, **{key: given[key] for key in TREE_SHAPE if key in given}}
    settings = settings_of(method, "")
    rules: list[tuple[str, dict[str, Any]]] = [("", {})]
    if "judge" in settings:
        rules = [(suffix if "threshold" in given else "", each) for suffix, each in _thresholds(parsed, given)]
    elif "accept_k" in settings:
        rules = [(suffix if "accept_k" in given else "", each) for suffix, each in _likeliest(parsed, given)]
    axes = [_values(key, given, parsed) for key in _SUFFIXES if key in settings]
    more = {key: parsed[key] for key in TREE_SHAPE if key in parsed and key not in ("tree_budget", "max_depth")}
    if "max_depth" in parsed:
        depths = {preset: parsed["max_depth"]}
    else:
        depths = {preset: parsed["gamma"]} if gammas is None else {f"{method}_k{gamma}": gamma for gamma in gammas}
    methods = []
    for label, depth in depths.items():
        budgets = {label: more.get("parallel_branches", PARALLEL_BRANCHES) * depth}
        if "tree_budget" in parsed:
            budgets = {f"{label}_b{budget}": budget for budget in parsed["tree_budget"]}
        for (name, budget), *chosen in product(budgets.items(), rules, *axes):
            overrides = {key: value for _, each in chosen for key, value in each.items()}
            name += "".join(suffix for suffix, _ in chosen)
            methods.append(MethodConfig(method, preset, name, tree=TreeConfig(budget, depth, **more), **overrides))
    return methods


def served(name: str, engines: Sequence[ServedMethod], faults: list[str]) -> list[MethodConfig]:
    """The setting of a served engine, which `engine` must name."""
    known = [each.method for each in engines]
    if name not in known:
        faults.append(
            unknown("engine", name, known) if known else f"method '{name}' needs the setting engine; give it."
        )
    return [MethodConfig(name, name, name)]


def served_faults(methods: Sequence[MethodConfig], values: Mapping[str, Any]) -> list[str]:
    """What does not go with served engines: engines that no method names, and settings of our own decoding."""
    engines, names = values.get("engine", ()), [method.method for method in methods]
    result = [
        f"engine has {each.name}, but methods do not have {each.method}; add it, or leave it out."
        for each in engines
        if each.method not in names
    ]
    if any(name.startswith(SERVED) for name in names) and values.get("batch", 1) > 1:
        result.append(f"batch is {values['batch']}, but engines are asked for one output at a time; leave it out.")
    if any(name.startswith(SERVED) for name in names) and values.get("thinking_budget", 0):
        result.append("thinking_budget is given, but a served engine cannot be made to end a thought; leave it out.")
    if any(name.startswith(SERVED) for name in names) and values.get("numerics", FASTEST) != FASTEST:
        result.append(f"numerics is {values['numerics']}, but a served engine computes by its own; leave it out.")
    tokenizers = sorted({each.endpoint.tokenizer for each in engines if each.endpoint.tokenizer})
    if len(tokenizers) > 1:
        result.append(f"engine has the tokenizers {' and '.join(tokenizers)}; prompts are encoded by one: name one.")
    return result
