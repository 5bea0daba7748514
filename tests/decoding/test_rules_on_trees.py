"""Rules without training on a tree: what their equations give, their lossless end, and a single branch, a chain."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from helpers.model_folders import slow_for
from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from helpers.seeded_bugs import RULES_ON_TREES_BUGS, Bug, mutated
from helpers.tree_walks import LENGTH, PROMPT, SHAPES, Waives, decoder, module, outputs_of_recursion, pair
from specexp.certify.reference_distribution import gap, warp
from specexp.config import adjusted, resolve
from specexp.decoding.rng import rng_for

PROMPTS = [[1 + i % 6, 2, 1 + (3 * i) % 7] for i in range(6)]
# Each with settings between the ends of its dial.
DIALS: dict[str, list[tuple[Any, ...]]] = {
    "topk": [(2, None), (2, 0.25), (3, 0.15)],
    "typical": [(0.3, 0.55), (0.15, 1.5)],
    "entropy": [(0.0,), (0.6,), (0.85,)],
}


def rule(name: str, dial: tuple[Any, ...], sampling: dict[str, Any]) -> Any:
    untrained, warped = module("decoding.untrained_rules"), module("decoding.rules").Warp(**sampling)
    if name == "topk":
        return module("decoding.lossy_rules").TopK(*dial, warped)
    return untrained.Typical(*dial, warped) if name == "typical" else untrained.EntropyGate(*dial, warped)


def off(name: str, sampling: dict[str, Any]) -> Any:
    """At the lossless end of its dial."""
    return rule(name, {"topk": (3, 0.0), "typical": (1.0, math.inf), "entropy": (1.0,)}[name], sampling)


def equation(target: Any, name: str, dial: tuple[Any, ...], sampling: dict[str, Any]) -> Waives:
    """On lists of floats, from fresh forwards."""

    def waives(ids: list[int], token: int) -> bool:
        logits, _ = target.session().feed(target.ids(ids), rows=1)
        row = logits[-1].tolist()
        p = [float(x) for x in warp(row, **(sampling if sampling["temperature"] else {"temperature": 1.0}))]
        entropy = -sum(x * math.log(x) for x in p if x)
        if name == "entropy":
            return entropy > dial[0] * math.log(len(p))
        if name == "typical":
            return p[token] > min(dial[0], dial[1] * math.exp(-entropy))
        among = token in sorted(range(len(row)), key=lambda i: (-row[i], i))[: dial[0]]
        return among and (dial[1] is None or p[token] > max(p) - dial[1])

    return waives


def check_every_way_the_rng_can_fall(shape: tuple[int, int, int, int], sampling: dict[str, Any], name: str) -> None:
    lossy = 0
    for number, dial in enumerate(DIALS[name]):
        models = pair(3 + number)
        got = module("certify.oracle").output_distribution(
            lambda models=models, number=number: module("engine").Engine(models, [EOS], cached=number % 3 > 0),
            decoder(shape, sampling, rule(name, dial, sampling)), PROMPT, LENGTH,
        )  # fmt: skip
        assert sum(got.values()) == pytest.approx(1, abs=EXACT)
        waives = equation(models["target"], name, dial, sampling)
        assert gap(got, outputs_of_recursion(models, shape, sampling, waives)) < EXACT
        own = module("certify.reference_distribution").sequence_distribution(
            models["target"], PROMPT, LENGTH, EOS, **sampling
        )
        lossy += gap(got, own) > EXACT
    if sampling["temperature"] and shape[0] > 2:
        assert lossy, "the rule never changed anything"


@pytest.mark.at_most(fast=16)
@pytest.mark.parametrize("name", DIALS)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("shape", slow_for(SHAPES, SHAPES[1]), ids=lambda shape: ",".join(map(str, shape)))
def test_every_way_the_rng_can_fall(shape: tuple[int, int, int, int], sampling: dict[str, Any], name: str) -> None:
    check_every_way_the_rng_can_fall(shape, sampling, name)


def outputs(models: dict[Any, Any], method: Any, temperature: float) -> Any:
    engine = module("engine").Engine(models, (EOS,))
    return [engine.generate(method, ids, 28, rng_for(temperature, 5, str(ids))) for ids in PROMPTS]


def check_the_lossless_end_is_specexec(temperature: float, name: str) -> None:
    models, shape, sampling = pair(6, 8, 0.5), (8, 3, 3, 2), {"temperature": temperature}
    plain = outputs(models, decoder(shape, sampling), temperature)
    for got, expected in zip(
        outputs(models, decoder(shape, sampling, off(name, sampling)), temperature), plain, strict=True
    ):
        assert got.token_ids == expected.token_ids
        assert [{k: v for k, v in each.items() if k != "judged"} for each in got.trees] == expected.trees
        assert got.num_judged == 0


@pytest.mark.parametrize("name", DIALS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_lossless_end_is_specexec(temperature: float, name: str) -> None:
    check_the_lossless_end_is_specexec(temperature, name)


def check_a_tree_of_one_branch_is_the_chain(name: str) -> None:
    chain, models, sampling = module("decoding.chain"), pair(6, 8, 0.5), {"temperature": 0.0}
    num_judged = 0
    for dial in DIALS[name]:
        accepts = rule(name, dial, sampling)
        linear = chain.Chain(chain.DraftModel(4), accepts, module("decoding.rules").Warp())
        for got, expected in zip(
            outputs(models, decoder((4, 4, 1, 1), sampling, accepts), 0.0), outputs(models, linear, 0.0), strict=True
        ):
            for count in ("token_ids", "num_rounds", "num_accepted", "num_judged", "num_cut", "num_target_positions"):
                assert getattr(got, count) == getattr(expected, count), count
            num_judged += got.num_judged
    assert num_judged > 3


@pytest.mark.parametrize("name", DIALS)
def test_a_tree_of_one_branch_is_the_chain(name: str) -> None:
    check_a_tree_of_one_branch_is_the_chain(name)


def check_everything() -> None:
    for sampling, name in itertools.product((SAMPLINGS[0], SAMPLINGS[1]), DIALS):
        check_every_way_the_rng_can_fall(SHAPES[1], sampling, name)
        check_the_lossless_end_is_specexec(0.8, name)
        check_a_tree_of_one_branch_is_the_chain(name)


@pytest.mark.nightly
@pytest.mark.parametrize("bug", RULES_ON_TREES_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug) -> None:
    with mutated(bug), pytest.raises((AssertionError, IndexError, ValueError, TypeError)):
        check_everything()


def test_their_dials_are_swept_and_labelled() -> None:
    given = {
        "methods": "topk_tree,typical_tree,entropy_tree", "gamma": "3", "accept_k": "1,2", "accept_epsilon": "0.1,1",
        "accept_entropy": "0.2,1", "tree_budget": "6",
    }  # fmt: skip
    methods = adjusted(resolve("arith_quick", {}), given).methods
    assert [(each.label, each.dial, each.rule_is_off) for each in methods] == [
        ("topk_tree_k3_b6_top1", 1, False), ("topk_tree_k3_b6_top2", 2, False),
        ("typical_tree_k3_b6_e0.1", 0.1, False), ("typical_tree_k3_b6_e1", 1.0, True),
        ("entropy_tree_k3_b6_h0.2", 0.2, False), ("entropy_tree_k3_b6_h1", 1.0, True),
    ]  # fmt: skip
