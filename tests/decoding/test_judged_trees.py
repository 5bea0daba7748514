"""AutoJudge on a tree: exactly what it says at every threshold, its two ends, and that of a single branch, a chain."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from helpers.judges import random_network
from helpers.model_folders import slow_for
from helpers.networks import network_arrays
from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from helpers.seeded_bugs import JUDGED_TREE_BUGS, Bug, mutated
from helpers.tree_walks import LENGTH, PROMPT, SHAPES, Waives, decoder, module, outputs_of_recursion, pair
from specexp.certify.reference_distribution import gap, warp
from specexp.config import adjusted, resolve
from specexp.decoding.rng import rng_for
from specexp.errors import JudgeError
from specexp.judge.features import MODES
from specexp.judge.judge import Facts, Judge
from specexp.methods import check_judge

THRESHOLDS = (0.0, 0.4, 0.7, 1.1)
PROMPTS = [[1 + i % 6, 2, 1 + (3 * i) % 7] for i in range(6)]
MODES_OF_TREES = ("target", "target_previous")
KIND_OF = {"target_scalars": "trees"}


def network(mode: str, seed: int = 0) -> Any:
    size = MODES[mode].size({"target": module("lm.toy").HIDDEN})
    kind = KIND_OF.get(mode, "logistic")
    return module("judge.network").Network(kind, network_arrays(kind, size, seed))


def rule(mode: str, threshold: float, score: Any, eos: tuple[int, ...] = (EOS,), **sampling: Any) -> Any:
    judged, warp = module("decoding.lossy_rules").Judged, module("decoding.rules").Warp(**sampling)
    return judged(score, MODES[mode].parts, threshold, eos, MODES[mode].needs, warp)


def waived(target: Any, mode: str, threshold: float, judge: Any, sampling: dict[str, Any]) -> Waives:
    """From fresh forwards: whether the judge lets a token pass behind a text."""
    softened = sampling if sampling["temperature"] else {"temperature": 1.0}

    def waives(ids: list[int], token: int) -> bool:
        logits, hidden = target.session().feed(target.ids([*ids, token]), rows=2, hidden=True)
        row = hidden[0 if mode == "target_previous" else 1]
        if mode == "target_scalars":
            p = warp(logits[0].tolist(), **softened)
            spread = -sum(each * math.log(each) for each in p if each)
            row = np.concatenate([row, [spread, max(p) - p[token], p[token]]])
        return token != EOS and bool(judge(np.asarray(row, dtype=np.float32)[None])[0] < threshold)

    return waives


def check_every_way_the_rng_can_fall(shape: tuple[int, int, int, int], sampling: dict[str, Any]) -> None:
    lossy = 0
    modes = [*itertools.product(THRESHOLDS, MODES_OF_TREES), (0.6, "target_scalars")]
    for number, (threshold, mode) in enumerate(modes):
        models, judge = pair(3 + number), network(mode, number)
        got = module("certify.oracle").output_distribution(
            lambda models=models, number=number: module("engine").Engine(models, [EOS], cached=number % 3 > 0),
            decoder(shape, sampling, rule(mode, threshold, judge, **sampling)), PROMPT, LENGTH,
        )  # fmt: skip
        assert sum(got.values()) == pytest.approx(1, abs=EXACT)
        waives = waived(models["target"], mode, threshold, judge, sampling)
        assert gap(got, outputs_of_recursion(models, shape, sampling, waives)) < EXACT
        own = module("certify.reference_distribution").sequence_distribution(
            models["target"], PROMPT, LENGTH, EOS, **sampling
        )
        lossy += gap(got, own) > EXACT
        assert threshold or gap(got, own) < EXACT, "threshold 0 is lossless"
    if sampling["temperature"] and shape[0] > 2:
        assert lossy > 1, "the judge never changed anything"


@pytest.mark.at_most(fast=2, slow=4)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("shape", slow_for(SHAPES, *SHAPES[:2], SHAPES[3]), ids=lambda shape: ",".join(map(str, shape)))
def test_every_way_the_rng_can_fall(shape: tuple[int, int, int, int], sampling: dict[str, Any]) -> None:
    check_every_way_the_rng_can_fall(shape, sampling)


def caught_by(bug: Bug) -> str | None:
    """What notices the bug, or None."""
    with mutated(bug):
        try:
            for shape, sampling in itertools.product((SHAPES[1], SHAPES[2]), (SAMPLINGS[0], SAMPLINGS[2])):
                check_every_way_the_rng_can_fall(shape, sampling)
            check_threshold_zero_is_specexec_at_the_same_cost(0.8)
            check_a_tree_of_one_branch_is_the_judged_chain("target", pair(6, 8, 0.5))
        except (AssertionError, IndexError, ValueError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.slow
def test_the_unchanged_package_passes_the_same_checks() -> None:
    assert caught_by(Bug("nothing", "specexp.decoding.tree", "ROOT = -1", "ROOT = -1")) is None


@pytest.mark.nightly
@pytest.mark.parametrize("bug", JUDGED_TREE_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug) -> None:
    assert caught_by(bug) is not None


def outputs(models: dict[Any, Any], method: Any, temperature: float, eos: tuple[int, ...] = (EOS,), **more: Any) -> Any:
    engine = module("engine").Engine(models, eos, **more)
    return [engine.generate(method, ids, 28, rng_for(temperature, 5, str(ids))) for ids in PROMPTS]


def check_threshold_zero_is_specexec_at_the_same_cost(temperature: float) -> None:
    models, shape, sampling = pair(6, 8, 0.5), (8, 3, 3, 2), {"temperature": temperature}

    def never(features: Any) -> Any:
        raise AssertionError("a judge at threshold 0 was asked")

    plain = outputs(models, decoder(shape, sampling), temperature)
    judged = outputs(models, decoder(shape, sampling, rule("target", 0.0, never)), temperature)
    for got, expected in zip(judged, plain, strict=True):
        assert got.token_ids == expected.token_ids
        assert [{k: v for k, v in each.items() if k != "judged"} for each in got.trees] == expected.trees
        assert got.num_judged == sum(sum(each["judged"]) for each in got.trees) == 0
        assert (got.num_target_positions, got.num_draft_positions) == (
            expected.num_target_positions, expected.num_draft_positions,
        )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_threshold_zero_is_specexec_at_the_same_cost(temperature: float) -> None:
    check_threshold_zero_is_specexec_at_the_same_cost(temperature)


def check_a_tree_of_one_branch_is_the_judged_chain(mode: str, models: dict[Any, Any], size: int | None = None) -> None:
    chain, rules = module("decoding.chain"), module("decoding.rules")
    size, num_judged = size or module("lm.toy").HIDDEN, 0
    judge = module("judge.network").Network("logistic", network_arrays("logistic", size, 1))
    for threshold in (0.3, 0.6, 1.1):
        waives = rule(mode, threshold, judge)
        linear = chain.Chain(chain.DraftModel(4), waives, rules.Warp())
        for got, expected in zip(
            outputs(models, decoder((4, 4, 1, 1), {"temperature": 0.0}, waives), 0.0),
            outputs(models, linear, 0.0),
            strict=True,
        ):
            for name in ("token_ids", "num_rounds", "num_accepted", "num_judged", "num_cut", "num_target_positions"):
                assert getattr(got, name) == getattr(expected, name), name
            num_judged += got.num_judged
    assert num_judged > 10


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize("mode", MODES_OF_TREES)
@pytest.mark.parametrize("family", ["toy", "llama", "gpt2"])
def test_a_tree_of_one_branch_is_the_judged_chain(family: str, mode: str, request: pytest.FixtureRequest) -> None:
    if family == "toy":
        check_a_tree_of_one_branch_is_the_judged_chain(mode, pair(6, 8, 0.5))
    else:
        check_a_tree_of_one_branch_is_the_judged_chain(mode, request.getfixturevalue("pair")(family), 32)


def test_above_one_a_walk_ends_at_a_leaf_or_above_an_unwanted_eos() -> None:
    """And a text ends only where the target would end it."""
    models, judged, ends = pair(6, 8, 0.5), 0, 0
    method = decoder((8, 3, 3, 2), {"temperature": 0.0}, rule("target", 1.1, network("target")))
    for prompt, out in zip(PROMPTS, outputs(models, method, 0.0), strict=True):
        judged += out.num_judged
        assert all(each["num_accepted"] for each in out.trees[:-1]), "two children, of which one at most is an EOS"
        if out.finish_reason == "stop":
            ends += 1
            ids = [*prompt, *out.token_ids[:-1]]
            logits, _ = models["target"].session().feed(models["target"].ids(ids), rows=1)
            assert int(logits[-1].argmax()) == EOS
    assert judged > 5
    assert ends


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_cache_and_a_batch_change_nothing(temperature: float) -> None:
    models = pair(6, 8, 0.5)
    method = decoder((8, 3, 3, 2), {"temperature": temperature}, rule("target", 0.6, network("target")))
    cached, uncached = (outputs(models, method, temperature, cached=cached) for cached in (True, False))
    assert [out.token_ids for out in cached] == [out.token_ids for out in uncached]
    assert [out.trees for out in cached] == [out.trees for out in uncached]
    assert sum(out.num_judged for out in cached) > 5


@pytest.mark.parametrize("part", ["draft", "both", "both_previous", "scalars"])
def test_a_judge_of_the_drafts_states_is_refused_by_name(part: str) -> None:
    (method,) = adjusted(resolve("arith_quick", {}), {"methods": "autojudge_tree"}).methods
    with pytest.raises(JudgeError, match=rf"reads {part} features.*leaves of autojudge_tree's tree.*target_previous"):
        check_judge(method, made_up(part))
    check_judge(method, made_up("target"))
    check_judge(method, made_up("target_previous_scalars"))


def made_up(part: str) -> Judge:
    return Judge(random_network("logistic", 2), Facts("", "", "", part, 1, 2))
