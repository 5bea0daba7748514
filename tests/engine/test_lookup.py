"""Prompt lookup: what is found, and that it changes no output. Its exactness when sampling is the oracle's."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from helpers.cli_runner import evaluate, flat_runs, records
from helpers.generation import LENGTH, generate, prompts
from helpers.model_folders import FAMILIES
from helpers.seeded_bugs import SEARCH_BUGS, Bug, mutated
from specexp import config
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, Lookup, Lossless
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.engine.ngram_lookup import Ngrams
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.toy import ToyModel
from specexp.methods import roles_of

LOOKING = Chain(Lookup(6), Lossless(), Warp())


def slow(ids: Sequence[int], longest: int, most: int) -> list[int]:
    """The same search by looking everywhere, and copying one token after another."""
    for length in range(min(longest, len(ids) - 1), 0, -1):
        for place in range(len(ids) - 1, length - 1, -1):
            if ids[place - length : place] == ids[-length:]:
                whole = list(ids)
                for i in range(most):
                    whole.append(whole[place + i])
                return whole[len(ids) :]
    return []


def wrong(make: Any) -> str | None:
    """Where a search does not find what the slow one finds, in sequences that grow by a few tokens at a time."""
    rng = random.Random(0)
    for longest, vocabulary in ((1, 4), (2, 3), (3, 2), (3, 6), (5, 3)):
        for _ in range(8):
            search, ids = make(longest), [rng.randrange(vocabulary)]
            while len(ids) < 40:
                got, expected = search.continuation(ids, 5), slow(ids, longest, 5)
                if got != expected:
                    return f"{got} instead of {expected} behind {ids}, runs of {longest}"
                ids += [rng.randrange(vocabulary) for _ in range(rng.randrange(1, 5))]
    return None


def test_the_latest_place_of_the_longest_run_is_found() -> None:
    assert wrong(Ngrams) is None


@pytest.mark.parametrize("bug", SEARCH_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_in_the_search_is_caught(bug: Bug) -> None:
    with mutated(bug):
        try:
            how = wrong(importlib.import_module("specexp.engine.ngram_lookup").Ngrams)
        except (IndexError, ZeroDivisionError) as error:
            how = str(error)
    assert how is not None


def test_a_text_that_repeats_is_offered_whole_however_short_its_period() -> None:
    assert Ngrams(3).continuation([9, 4, 7, 4, 7, 4, 7], 5) == [4, 7, 4, 7, 4]
    assert Ngrams(3).continuation([9, 4, 4], 3) == [4, 4, 4]
    assert Ngrams(3).continuation([9, 4, 7], 3) == []
    assert Ngrams(3).continuation([9], 3) == []


@pytest.mark.at_most(fast=3)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_equals_generate_without_a_draft(pair: Callable[[str], dict[str, HFModel]], family: str) -> None:
    target = pair(family)["target"]
    accepted = 0
    for prompt in prompts():
        out = Engine({"target": target}).generate(LOOKING, prompt, LENGTH, CertainRng())
        assert out.token_ids == generate(target, prompt, LENGTH, None)
        assert out.num_draft_calls == out.num_draft_positions == 0
        assert out.num_target_positions == out.num_rounds + out.num_drafted
        accepted += out.num_accepted
    assert accepted > 0, "nothing that was looked up was ever accepted: the test says little"


def test_where_nothing_is_found_a_round_is_a_plain_step() -> None:
    target = ToyModel(200, seed=5)
    plain = Engine({"target": target}).generate(Baseline(Warp()), [1], 8, CertainRng())
    assert len(set(plain.token_ids)) == 8, "a toy that repeats nothing"
    engine = Engine({"target": target})
    out = engine.generate(LOOKING, [1], 8, CertainRng())
    assert out.token_ids == plain.token_ids
    assert (out.num_rounds, out.num_drafted, out.num_target_positions) == (8, 0, 8)
    assert engine.num_host_reads == 8


def test_it_asks_for_the_target_alone() -> None:
    (method,) = config.resolve("arith_quick", {"methods": "lookup", "gamma": "5"}).methods
    assert (method.label, method.gamma, method.max_ngram) == ("lookup_k5", 5, 3)
    assert roles_of(method) == {"target"}


@pytest.mark.slow
def test_an_evaluation_measures_no_draft_and_claims_no_cost_of_one(workplace: Any) -> None:
    settings = ["--methods", "baseline,lookup", "--limit", "2", "--max_new_tokens", "60", "--output", "out"]
    (workplace / "mine.yaml").write_text("max_ngram: 2\n")
    result = evaluate("--experiment", "arith_quick", "--config", "mine.yaml", *settings)
    assert result.exit_code == 0, result.output
    by_label = {(r["label"], r["prompt_id"]): r for r in records(workplace / "out")}
    for (label, prompt), record in by_label.items():
        assert record["token_ids"] == by_label["baseline", prompt]["token_ids"]
        assert record["num_draft_calls"] == 0, label
    run = flat_runs()["lookup"].data
    assert (run.tags["lossless"], run.params["max_ngram"], run.params["gamma"]) == ("true", "2", "8")
    metrics = run.metrics
    assert metrics["calls/draft_per_token"] == 0
    assert not {"speed/c", "speed/predicted_speedup"} & metrics.keys(), "no draft, no cost of one"
    assert metrics["speed/attainable"] == pytest.approx(metrics["accept/mean_length"] / metrics["speed/v"])
