"""Predicted rounds of other ways to draft and verify: those that decoding makes, or unbiased where drafts are drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import pytest

from helpers.advice import advised, measured, predicted
from helpers.fake_clock import prepared_toy
from helpers.rounds import Noting, decode, plainly, toy_models
from specexp.advise.adaptive import adapted_rounds
from specexp.advise.advice_report import as_json
from specexp.advise.rounds import LookupTrace, Trace, chain_rounds, lookup_rounds
from specexp.advise.traces import agreement, recalled
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless, Proposer, Suffix
from specexp.decoding.draft_length import NOMINAL
from specexp.decoding.protocol import SuffixLimits
from specexp.decoding.rules import Warp

SIGMAS = 5  # a difference beyond it has a chance of 6e-7
SAMPLES = 200
GAMMAS = (1, 2, 4, 9)


def toy(**flags: Any) -> Any:
    given = {"eos_ids": (), "max_new_tokens": 60, "toy": "vocab_size=12", **flags}
    return prepared_toy(toy_models(0.5), **given)


def in_turn(gamma: int, *, draft: bool) -> InTurn:
    turns: dict[str, Proposer] = {"suffix": Suffix(gamma, SuffixLimits(1, 0.3), 2), "lookup": Lookup(gamma, 2)}
    return InTurn({**turns, "draft": DraftModel(gamma)} if draft else turns)


def trace_of(prepared: Any, index: int, output: Any, draft_temperature: float | None = None) -> Trace:
    agreed = agreement(prepared, index, output, draft_temperature)
    return replace(agreed.trace, certainty=agreed.certainty)


@pytest.mark.slow
@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rounds_of_suffix_decoding_and_proposers_in_turn_are_those_of_the_output(
    temperature: float, bonus: bool
) -> None:
    """Without a draft model nothing is drawn that the output does not show, at any temperature."""
    prepared = toy(methods="suffix", temperature=temperature)
    warp, seen = Warp(temperature), Counter[str]()
    chains = {}
    for gamma in GAMMAS:
        proposers = {"suffix": Suffix(gamma, SuffixLimits(1, 0.1)), "turns": in_turn(gamma, draft=False)}
        chains |= {f"{name} {gamma}": Chain(each, Lossless(), warp, bonus) for name, each in proposers.items()}
    for index in range(2):
        for name, chain in chains.items():
            for verification in ("token", "block"):
                counted = decode(prepared, replace(chain, verification=verification), index)  # type: ignore[arg-type]
                traces = recalled(prepared, index, counted.token_ids, {name: chain})
                rounds = lookup_rounds([traces[name]], 9, bonus)
                assert (rounds.rounds, rounds.drafted) == (counted.num_rounds, counted.num_drafted), name
                assert rounds.recalled == rounds.drafted
                seen["accepted"] += counted.num_accepted
                seen["rejected"] += counted.num_drafted - counted.num_accepted
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize("bonus", [True, False])
def test_rounds_of_a_draft_whose_turn_is_last_are_those_of_the_greedy_decoder(bonus: bool) -> None:
    prepared = toy(methods="chained")
    shares = Counter[str]()
    for index in range(3):
        output = plainly(prepared, index).token_ids
        trace = trace_of(prepared, index, output)
        for gamma in GAMMAS:
            chain = Chain(in_turn(gamma, draft=True), Lossless(), Warp(), bonus)
            noting = Noting(chain)
            counted = decode(prepared, noting, index)
            assert counted.token_ids == output
            others = recalled(prepared, index, output, {"": chain})[""]
            rounds = chain_rounds([trace], gamma, bonus, recalled=[others])
            assert (rounds.rounds, rounds.drafted) == (counted.num_rounds, counted.num_drafted)
            assert rounds.by_accepted == Counter(noting.rounds)
            assert rounds.drafted - rounds.recalled == counted.num_draft_calls
            assert rounds.caught_up == counted.num_draft_positions - counted.num_draft_calls
            shares["recalled"] += int(rounds.recalled)
            shares["drafted"] += counted.num_draft_calls
    assert min(shares.values()) > 50, shares


def test_a_proposal_is_trimmed_by_hand() -> None:
    trace = LookupTrace([2, None, 1, 0], limit=4, proposed=[3, 0, 1, 0])
    assert [trace.at(place, 9, True) for place in range(4)] == [(3, 2), (0, 0), (1, 1), (0, 0)]
    rounds = chain_rounds([Trace([1.0] * 4, 4, 9)], 2, recalled=[trace])
    assert rounds.by_drafted == {3: 1.0, 0: 1.0}, "place 0 emits three tokens, and one is left"
    assert rounds.recalled == 3


def test_blocks_by_hand() -> None:
    """Q: 0.5, then 0.5 * 4 = 2: what the first token kept, 0.5, stays; tokens alone keep 0.5 * 1."""
    trace = Trace([0.5, 1.0, 0.25], limit=9, draft_limit=9, ratio=[0.5, 4.0, 0.25])
    token, block = (chain_rounds([trace], 3, block=block) for block in (False, True))
    assert token.by_accepted[3] == pytest.approx(0.5 * 1.0 * 0.25)
    assert block.by_accepted[3] == pytest.approx(0.5), "Q_3 = 0.5"
    assert block.by_accepted == {0: 0.5, 3: 0.5, 2: 0.5}, "after a rejection, the other two: Q = 4, 1"


def unbiased(expected: list[float], counted: list[float]) -> None:
    """The mean of what was counted less what was expected is 0 but for chance, also among outputs that expect many."""
    middle = fmean(expected)
    off = [count - prediction for count, prediction in zip(counted, expected, strict=True)]
    for values in (off, [each * (value - middle) for each, value in zip(off, expected, strict=True)]):
        assert abs(fmean(values)) <= SIGMAS * (variance(values) / len(values)) ** 0.5
    assert (variance(off) / len(off)) ** 0.5 < 0.02 * middle, "so that an error of a tenth would be seen"


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [2, 5])
def test_expected_rounds_of_blocks_are_the_counted_ones_in_the_mean(gamma: int) -> None:
    prepared = toy(temperature=0.9, max_new_tokens=14)
    chain = Chain(DraftModel(gamma), Lossless(), Warp(0.9), verification="block")
    expected, tokens, counted = [], [], []
    for seed in range(SAMPLES):
        out = decode(prepared, chain, 0, seed)
        trace = trace_of(prepared, 0, out.token_ids)
        expected.append(chain_rounds([trace], gamma, block=True).rounds)
        tokens.append(chain_rounds([trace], gamma).rounds)
        counted.append(float(out.num_rounds))
    unbiased(expected, counted)
    assert fmean(expected) < fmean(tokens)


@pytest.mark.slow
def test_drafts_at_temperature_0_leave_nothing_to_chance_but_the_output() -> None:
    prepared = toy(temperature=0.9)
    plain = 0
    for seed in range(12):
        for gamma in GAMMAS:
            out = decode(prepared, Chain(DraftModel(gamma, temperature=0.0), Lossless(), Warp(0.9)), 0, seed)
            trace = trace_of(prepared, 0, out.token_ids, 0.0)
            assert set(trace.accepted) == {0.0, 1.0}
            rounds = chain_rounds([trace], gamma)
            assert (rounds.rounds, rounds.drafted) == (out.num_rounds, out.num_drafted)
            plain += chain_rounds([trace_of(prepared, 0, out.token_ids)], gamma).rounds != out.num_rounds
    assert plain > 24, "at the target's temperature rounds are others"


@pytest.mark.slow
@pytest.mark.parametrize("draft_temperature", [0.5, 1.4])
def test_drafts_at_another_temperature_are_expected_in_the_mean(draft_temperature: float) -> None:
    prepared = toy(temperature=0.9, max_new_tokens=14)
    chain = Chain(DraftModel(4, temperature=draft_temperature), Lossless(), Warp(0.9))
    expected, counted = [], []
    for seed in range(SAMPLES):
        out = decode(prepared, chain, 0, seed)
        expected.append(chain_rounds([trace_of(prepared, 0, out.token_ids, draft_temperature)], 4).rounds)
        counted.append(float(out.num_rounds))
    unbiased(expected, counted)


@pytest.mark.parametrize("temperature", [0.0, pytest.param(0.8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["draft", "block", "stops", "turns"])
def test_drafts_that_adapt_make_the_rounds_that_are_simulated(temperature: float, case: str) -> None:
    """Off the output, the draft's probabilities are others: lengths there are near, and with them what is learnt."""
    prepared = toy(temperature=temperature, max_new_tokens=100, limit=4)
    draft = DraftModel(10, 0.2 if case == "stops" else 0.0, costs=NOMINAL)
    turns = InTurn({"suffix": Suffix(10, SuffixLimits(1, 0.3), 3), "draft": draft})
    proposer: Proposer = turns if case == "turns" else draft
    chain = Chain(proposer, Lossless(), Warp(temperature), verification="block" if case == "block" else "token")
    traces, others, rounds, drafted = [], [], 0, 0
    for index in range(4):
        for seed in range(6 if temperature else 1):
            out = decode(prepared, chain, index, seed)
            rounds, drafted = rounds + out.num_rounds, drafted + out.num_drafted
            traces.append(trace_of(prepared, index, out.token_ids))
            if case == "turns":
                others.append(recalled(prepared, index, out.token_ids, {"": chain})[""])
    result = adapted_rounds(traces, draft, block=case == "block", recalled=others)
    assert result.rounds == pytest.approx(rounds, rel=0.05)
    assert result.drafted == pytest.approx(drafted, rel=0.12)
    fixed = chain_rounds(traces, 10, block=case == "block", recalled=others)
    assert fixed.drafted > 1.5 * drafted, "a fixed length drafts more"


def test_with_costs_that_hold_other_drafts_take_what_is_predicted() -> None:
    flags: dict[str, Any] = {"limit": 2, "repeats": "1", "eos_ids": (), "max_new_tokens": "60"}
    advice = advised(methods="suffix,chained", gamma="2,6", **flags)
    assert sorted(advice.checked) == ["chained_k2", "chained_k6", "suffix_k2", "suffix_k6"]
    for label, prediction in advice.forecast.predicted.items():
        assert prediction.mean_length == pytest.approx(advice.checked[label].mean_length)
        close = 1e-9 if label.startswith("suffix") else 5e-3
        assert predicted(advice)[label] == pytest.approx(measured(advice)[label], rel=close)
    assert {prediction.lengths for prediction in advice.forecast.predicted.values()} == {"simulated"}
    adapting = advised(methods="speculative", gamma="auto", max_gamma="9", **flags)
    (label,) = adapting.checked
    assert adapting.candidates[0].kind == "speculative, adapting"
    assert predicted(adapting)[label] == pytest.approx(measured(adapting)[label], rel=0.02)
    (shown,) = as_json(adapting)["candidates"]
    assert shown["error"] == pytest.approx(predicted(adapting)[label] / measured(adapting)[label] - 1)
    assert shown["adapts"]


@pytest.mark.nightly
def test_sampled_drafts_of_every_kind_take_about_what_is_predicted(tmp_path: Path) -> None:
    """A run's outputs are other samples than those that predictions are made from."""
    file = tmp_path / "kinds.yaml"
    file.write_text("rule: [token, block]\ndraft_temperature: [target, 0]\n")
    flags: dict[str, Any] = {"limit": 12, "repeats": "1", "eos_ids": (), "max_new_tokens": "120", "temperature": "0.8"}
    advice = advised(methods="speculative", gamma="2,6", config=str(file), **flags)
    lengths = {label: prediction.mean_length for label, prediction in advice.forecast.predicted.items()}
    assert len(lengths) == 8
    assert lengths["speculative_k6_block"] > lengths["speculative_k6"]
    for label, prediction in advice.forecast.predicted.items():
        assert prediction.mean_length == pytest.approx(advice.checked[label].mean_length, rel=0.1)
        assert predicted(advice)[label] == pytest.approx(measured(advice)[label], rel=0.1)
