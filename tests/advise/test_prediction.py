"""Predicted rounds: exact at temperature 0, unbiased where tokens are sampled; and the arithmetic of their seconds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from statistics import fmean, variance
from typing import Any

import pytest

from helpers.fake_clock import prepared_toy
from helpers.judges import judge_for
from helpers.rounds import Noting, decode, plainly, toy_models
from specexp.advise.prediction import (
    Overhead,
    TreeRounds,
    chain_attainable,
    chain_calls,
    fit_overhead,
    tree_attainable,
    tree_between,
    tree_calls,
    varying_attainable,
)
from specexp.advise.rounds import Trace, chain_rounds
from specexp.advise.traces import agreement, watched
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.judge import features
from specexp.lm.toy import ToyModel
from specexp.profiling.call_costs import Costs

SIGMAS = 5  # a difference beyond it has a chance of 6e-7
SAMPLES = 400


def cut(rounds: list[int], length: int, gamma: int, bonus: bool) -> Counter[int]:
    """Rounds by accepted drafts, without those behind the output's end."""
    counts: Counter[int] = Counter()
    place = 0
    for num_accepted in rounds:
        counts[min(num_accepted, length - place)] += 1
        place += num_accepted + (1 if bonus or num_accepted < gamma else 0)
    return counts


@pytest.mark.at_most(fast=5)
@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize(
    ("noise", "max_new_tokens", "stops", "draft_context"),
    [
        (0.5, 40, True, 512),
        (0.0, 40, True, 512),
        (30.0, 40, True, 512),
        (0.3, 23, False, 512),
        (0.3, 40, False, 26),  # the draft's context ends within the output
        (0.3, 40, False, 8),  # and before it
        (0.5, 1, False, 512),
    ],
)
def test_simulated_rounds_are_those_of_a_greedy_chain_at_every_draft_length(
    noise: float, max_new_tokens: int, stops: bool, draft_context: int, bonus: bool
) -> None:
    models = toy_models(noise, draft_context)
    prepared = prepared_toy(models, eos_ids=(), max_new_tokens=max_new_tokens, toy="vocab_size=12")
    if stops:  # at a token in the middle of the first output
        eos = plainly(prepared, 0).token_ids[max_new_tokens // 2]
        prepared = replace(prepared, pair=replace(prepared.pair, eos_ids=(eos,)))
    reasons = set()
    for index in range(4):
        output = plainly(prepared, index)
        reasons.add(output.finish_reason)
        agreed = agreement(prepared, index, output.token_ids)
        assert len(agreed.trace.accepted) == len(output.token_ids)
        for gamma in range(1, 12):
            noting = Noting(Chain(DraftModel(gamma), Lossless(), Warp(), bonus))
            counted = decode(prepared, noting, index)
            assert counted.token_ids == output.token_ids
            rounds = chain_rounds([agreed.trace], gamma, bonus)
            assert rounds.rounds == counted.num_rounds
            assert rounds.drafted == counted.num_drafted == counted.num_draft_calls
            assert rounds.caught_up == counted.num_draft_positions - counted.num_draft_calls
            assert rounds.drafted + rounds.rounds == counted.num_target_positions
            assert rounds.mean_length == len(counted.token_ids) / counted.num_rounds
            assert rounds.by_drafted == Counter(rounds.by_drafted), "whole numbers"
            if draft_context == 512 and max_new_tokens > 1:
                assert rounds.by_accepted == cut(noting.rounds, len(output.token_ids), gamma, bonus)
    assert ("stop" in reasons) == stops


def test_a_long_output_is_looked_at_in_pieces_like_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_toy(toy_models(0.4), eos_ids=(), max_new_tokens=90, toy="vocab_size=12", temperature=0.8)
    output = plainly(prepared, 0).token_ids
    whole = agreement(prepared, 0, output)
    monkeypatch.setattr("specexp.advise.traces.PIECE", 7)
    pieces = agreement(prepared, 0, output)
    assert pieces.trace.accepted == pytest.approx(whole.trace.accepted, abs=1e-12)
    assert pieces.overlap == pytest.approx(whole.overlap, abs=1e-12)
    assert 0.2 < fmean(whole.overlap) < 0.99


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("gamma", [1, 4])
def test_expected_rounds_are_the_counted_ones_of_sampled_chains_in_the_mean(gamma: int) -> None:
    """A chain's number of rounds R less its expectation E(y) given its own output y has mean 0, also among outputs
    that expect many: both mean(R - E) and mean((R - E) (E - mean E)) are 0 but for chance. The S runs are independent
    and R, E are bounded by the 12 tokens, so that each mean is normal with the samples' variance / S."""
    prepared = prepared_toy(toy_models(0.6), eos_ids=(0,), temperature=0.9, max_new_tokens=12, toy="vocab_size=12")
    chain = Chain(DraftModel(gamma), Lossless(), Warp(0.9))
    expected, counted = [], []
    for seed in range(SAMPLES):
        out = decode(prepared, chain, 0, seed)
        expected.append(chain_rounds([agreement(prepared, 0, out.token_ids).trace], gamma).rounds)
        counted.append(float(out.num_rounds))
    middle = fmean(expected)
    off = [count - prediction for count, prediction in zip(counted, expected, strict=True)]
    for values in (off, [each * (value - middle) for each, value in zip(off, expected, strict=True)]):
        assert abs(fmean(values)) < SIGMAS * (variance(values) / SAMPLES) ** 0.5
    assert (variance(off) / SAMPLES) ** 0.5 < 0.015 * middle, "so that an error of a tenth would be seen"
    assert variance(expected) > 0.5, "outputs of one length and luck tell nothing"


def exact_rounds(models: Any, warp: Warp, ids: list[int], remaining: int, gamma: int) -> float:
    """Expected rounds of a sampled chain without EOS, by summing over all that it may draft, accept and emit."""

    known: dict[Any, Any] = {}

    def row(role: Any, ids: list[int]) -> Any:
        key = role, tuple(ids)
        if key not in known:
            known[key] = warp(Engine(models).score(role, ids, [])[0])[0].tolist()
        return known[key]

    def within(ids: list[int], left: int, remaining: int) -> float:
        """Rounds to come, where `left` more drafts are to be tested in this one."""
        if not remaining:
            return 0.0
        p = row("target", ids)
        if not left:
            return sum(p[x] * started([*ids, x], remaining - 1) for x in range(len(p)))
        q = row("draft", ids)
        return sum(
            min(p[x], q[x]) * within([*ids, x], left - 1, remaining - 1)
            + max(p[x] - q[x], 0.0) * started([*ids, x], remaining - 1)
            for x in range(len(p))
        )

    def started(ids: list[int], remaining: int) -> float:
        return 1 + within(ids, min(gamma, remaining - 1), remaining) if remaining else 0.0

    return float(started(ids, remaining))


def test_the_expectation_over_all_outputs_is_exact() -> None:
    """Sum over outputs y of p(y) times the expectation given y, against a sum over all that a chain may do. With
    sum_x min(p, q) in place of b it is another number: what is accepted decides what follows."""
    models: Any = {"target": ToyModel(3, context=512), "draft": ToyModel(3, draft_noise=0.9, context=512)}
    prepared = prepared_toy(models, eos_ids=(), temperature=0.9, max_new_tokens=5, toy="vocab_size=3", limit=1)
    warp, ids = Warp(0.9), prepared.prompts[0]
    for gamma in (1, 2, 3):
        expected = exact_rounds(models, warp, ids, 5, gamma)
        num_rounds = instead = 0.0
        for output in itertools.product(range(3), repeat=5):
            p = warp(Engine(models).score("target", ids, output[:-1])[0])
            chance = math.prod(float(p[i, token]) for i, token in enumerate(output))
            seen = agreement(prepared, 0, output)
            num_rounds += chance * chain_rounds([seen.trace], gamma).rounds
            instead += chance * chain_rounds([replace(seen.trace, accepted=seen.overlap)], gamma).rounds
        assert num_rounds == pytest.approx(expected, abs=1e-12)
        assert abs(instead - expected) > 5e-4


def test_what_a_lossy_chain_accepts_is_the_same_at_every_draft_length_without_bonus() -> None:
    judge = judge_for("toy_quick", features.mode("both"))
    prepared = prepared_toy(
        judges={"j": judge}, methods="autojudge", judge="j", threshold="1.5", gamma="2,3,5,9", eos_ids=()
    )
    judged = {s.config.gamma: s.decoder for s in prepared.settings if s.config.method == "autojudge"}
    some = 0
    for index in range(4):
        trace = watched(prepared, index, judged[2])  # type: ignore[arg-type]
        plain = agreement(prepared, index, plainly(prepared, index).token_ids).trace
        some += trace.accepted != plain.accepted
        for gamma, decoder in judged.items():
            counted = decode(prepared, replace(decoder, bonus=False), index)  # type: ignore[type-var]
            rounds = chain_rounds([trace], gamma, bonus=False)
            assert (rounds.rounds, rounds.drafted) == (counted.num_rounds, counted.num_drafted)
    assert some, "the judge waives nothing here"


def test_a_judge_that_waives_nothing_leaves_the_trace_of_the_lossless_chain() -> None:
    judge = judge_for("toy_quick", features.mode("target"))
    prepared = prepared_toy(judges={"j": judge}, methods="autojudge", judge="j", threshold="0", gamma="6")
    for index in range(4):
        output = plainly(prepared, index).token_ids
        trace = watched(prepared, index, prepared.settings[1].decoder)  # type: ignore[arg-type]
        assert trace == agreement(prepared, index, output).trace


def test_expected_rounds_by_hand() -> None:
    # Two tokens left at most: a draft of one and the bonus. It is accepted with 0.25, else a plain step follows.
    rounds = chain_rounds([Trace([0.25, 0.5], limit=2, draft_limit=9)], gamma=3)
    assert rounds.by_drafted == {1: 1.0, 0: 0.75}
    assert rounds.by_accepted == {0: 0.75 + 0.75, 1: 0.25}
    assert rounds.mean_length == pytest.approx(2 / 1.75)
    without = chain_rounds([Trace([0.25, 0.5], limit=2, draft_limit=9)], gamma=3, bonus=False)
    assert without.by_drafted == {2: 1.0, 1: 0.75}


def test_seconds_are_those_of_the_calls_and_an_overhead() -> None:
    costs = Costs(0.1, {1: 1.0, 5: 1.8}, {4: 0.2}, {9: 2.0})
    rounds = chain_rounds([Trace([1.0] * 11, limit=11, draft_limit=99)], gamma=4)
    assert rounds.by_drafted == {4: 2.0, 0: 1.0}
    assert chain_calls(rounds, costs) == pytest.approx(2 * (0.4 + 1.8) + 1.0)
    assert chain_calls(rounds, costs, feed_last_token=True) == pytest.approx(2 * (0.5 + 1.8) + 1.0)
    assert chain_attainable(rounds, 4, costs) == pytest.approx(11 / 3 / (0.4 + 1.8))
    assert chain_attainable(rounds, 4, costs, feed_last_token=True) == pytest.approx(11 / 3 / (0.5 + 1.8))
    # The second of two chains also takes in the last draft of the first one.
    caught_up = replace(costs, catch_up={1: 0.2, 2: 0.4})
    assert (rounds.chains, rounds.taken_in) == (2, 1.5)
    assert chain_calls(rounds, caught_up) == pytest.approx(2 * (0.4 + 1.8) + 1.0 + 2 * 0.1)
    assert chain_attainable(rounds, 4, caught_up) == pytest.approx(11 / 3 / (0.4 + 2 / 3 * 0.1 + 1.8))
    call = 8 / 3 * 0.1 + 2 / 3 * 0.1 + costs.v(11 / 3)
    assert varying_attainable(rounds, caught_up, 8) == pytest.approx(11 / 3 / call)
    block = replace(costs, block=True)
    assert chain_calls(rounds, block) == pytest.approx(2 * (0.1 + 1.8) + 1.0)
    assert chain_attainable(rounds, 4, block) == pytest.approx(11 / 3 / (0.1 + 1.8))
    assert Overhead(0.5, 0.1).of(rounds.rounds, rounds.drafted) == pytest.approx(3 * 0.5 + 8 * 0.1)
    tree = TreeRounds(tokens=30, rounds=10, nodes=80, draft_calls=20, draft_positions=50)
    assert tree_calls(tree, costs) == pytest.approx(20 * 0.15 + 10 * 2.0)
    assert tree_attainable(tree, costs) == pytest.approx(3 / (2 * 0.15 + 2.0))


def test_an_overhead_is_the_line_through_what_was_seen() -> None:
    assert fit_overhead([(4.0, 0.7)]) == Overhead(0.7)
    assert fit_overhead([(4.0, 0.7), (4.0, 0.9)]) == Overhead(pytest.approx(0.8))
    overhead = fit_overhead([(x, 0.5 + 0.03 * x) for x in (1.0, 8.0, 16.0)])
    assert (overhead.per_round, overhead.per_drafted) == (pytest.approx(0.5), pytest.approx(0.03))


def test_between_counted_trees_lengths_grow_with_the_budget_and_counted_ones_stay() -> None:
    def tree(rounds: float, nodes: float) -> TreeRounds:
        return TreeRounds(100, rounds, nodes * rounds, 8 * rounds, 30 * rounds)

    counted = {8: tree(25, 8), 32: tree(20, 30), 128: tree(21, 100)}
    assert all(tree_between(counted, budget) == measured for budget, measured in counted.items())
    assert tree_between(counted, 16).mean_length == pytest.approx(4.5)
    assert tree_between(counted, 16).nodes / tree_between(counted, 16).rounds == pytest.approx(19)
    assert tree_between(counted, 16).draft_calls / tree_between(counted, 16).rounds == pytest.approx(8)
    assert tree_between(counted, 64).mean_length == pytest.approx(5), "a larger budget yields no less"
    assert tree_between(counted, 4) == counted[8]
    assert tree_between(counted, 500) == counted[128]
