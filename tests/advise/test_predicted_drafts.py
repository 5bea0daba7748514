"""Drafts that are looked up, and drafts that stop early: predicted rounds are those that decoding makes."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.advice import SMALL, advise, advised, measured, predicted
from helpers.fake_clock import prepared_toy
from helpers.rounds import Noting, decode, plainly, toy_models
from specexp import config
from specexp.advise.forecast import records_of
from specexp.advise.rounds import NEVER, LookupTrace, Rounds, Stop, chain_rounds, fit_stop, lookup_rounds
from specexp.advise.traces import agreement, looked_up
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.evaluation.preparation import Prepared
from specexp.lm.toy import ToyModel


def repeating(**flags: Any) -> Prepared:
    """A toy whose outputs repeat themselves often enough that lookups are accepted, and rejected."""
    given = {"methods": "lookup", "eos_ids": (), "max_new_tokens": 60, "toy": "vocab_size=12", **flags}
    return prepared_toy(toy_models(0.5), **given)


@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize("ngram", [1, 3])
@pytest.mark.parametrize("stops", [True, False])
def test_looked_up_rounds_are_those_of_the_greedy_decoder_at_every_draft_length(
    ngram: int, bonus: bool, stops: bool
) -> None:
    prepared = repeating()
    if stops:
        eos = plainly(prepared, 1).token_ids[30]
        prepared = replace(prepared, pair=replace(prepared.pair, eos_ids=(eos,)))
    seen: Counter[str] = Counter()
    for index in range(3):
        output = plainly(prepared, index).token_ids
        trace = looked_up(prepared, index, output, ngram, 9)
        for gamma in (1, 2, 3, 5, 9):
            noting = Noting(Chain(Lookup(gamma, ngram), Lossless(), Warp(), bonus))
            counted = decode(prepared, noting, index)
            assert counted.token_ids == output
            rounds = lookup_rounds([trace], gamma, bonus)
            assert (rounds.rounds, rounds.drafted) == (counted.num_rounds, counted.num_drafted)
            assert rounds.mean_length == len(output) / counted.num_rounds
            seen["accepted"] += counted.num_accepted
            seen["rejected"] += counted.num_drafted - counted.num_accepted
    assert min(seen.values()) > 0, seen


def test_a_sampled_output_tells_the_very_rounds_that_lookup_made_of_it() -> None:
    prepared = repeating(temperature=0.9, max_new_tokens=30, toy="vocab_size=5")
    accepted = 0
    for seed in range(6):
        for gamma, bonus in ((1, True), (4, True), (4, False)):
            counted = decode(prepared, Chain(Lookup(gamma, 2), Lossless(), Warp(0.9), bonus), 0, seed)
            rounds = lookup_rounds([looked_up(prepared, 0, counted.token_ids, 2, 8)], gamma, bonus)
            assert (rounds.rounds, rounds.drafted) == (counted.num_rounds, counted.num_drafted)
            accepted += counted.num_accepted
    assert accepted > 20


def test_looked_up_rounds_by_hand() -> None:
    # Nothing is found at first; then three proposed tokens of which two are right; then the end is near.
    trace = LookupTrace([None, 2, 0, 0, 5, 0], limit=6)
    rounds = lookup_rounds([trace], gamma=3)
    assert rounds.by_drafted == {0: 1.0, 3: 1.0, 1: 1.0}
    assert rounds.by_accepted == {0: 1.0, 2: 1.0, 1: 1.0}
    assert rounds.mean_length == 2


@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize(("least", "draft_context"), [(0.25, 512), (0.35, 512), (0.35, 26)])
def test_simulated_rounds_are_those_of_a_greedy_chain_that_stops_early(
    least: float, draft_context: int, bonus: bool
) -> None:
    prepared = prepared_toy(toy_models(0.4, draft_context), eos_ids=(), max_new_tokens=40, toy="vocab_size=12")
    early = 0
    for index in range(2):
        output = plainly(prepared, index).token_ids
        agreed = agreement(prepared, index, output)
        trace = replace(agreed.trace, certainty=agreed.certainty)
        for gamma in (1, 2, 3, 5, 8):
            noting = Noting(Chain(DraftModel(gamma, least), Lossless(), Warp(), bonus))
            counted = decode(prepared, noting, index)
            assert counted.token_ids == output
            surely, most = (chain_rounds([trace], gamma, bonus, Stop(least, r)) for r in (0.0, 1.0))
            for rounds in (surely, most):
                assert rounds.rounds == counted.num_rounds
                assert rounds.mean_length == len(output) / counted.num_rounds
                assert rounds.by_accepted == Counter(noting.rounds)
            assert surely.drafted <= counted.num_drafted <= most.drafted
            fitted = chain_rounds([trace], gamma, bonus, fit_stop(least, surely, counted.num_drafted))
            assert fitted.drafted == pytest.approx(counted.num_drafted, abs=1e-6)
            early += counted.num_rounds > chain_rounds([trace], gamma, bonus).rounds
    assert early, "no draft ever stopped"


def test_the_expectation_of_a_sampled_chain_that_stops_early_is_exact() -> None:
    """Sum over outputs of p(output) times the expectation given it, against a sum over all that may happen."""
    models: Any = {"target": ToyModel(3, context=512), "draft": ToyModel(3, draft_noise=0.9, context=512)}
    prepared = prepared_toy(models, eos_ids=(), temperature=0.9, max_new_tokens=5, toy="vocab_size=3", limit=1)
    warp, ids, least = Warp(0.9), prepared.prompts[0], 0.4
    known: dict[Any, Any] = {}

    def row(role: Any, ids: list[int]) -> Any:
        key = role, tuple(ids)
        if key not in known:
            known[key] = warp(Engine(models).score(role, ids, [])[0])[0].tolist()
        return known[key]

    def within(ids: list[int], left: int, remaining: int, gamma: int) -> float:
        p = row("target", ids)
        if not left:
            return sum(p[x] * started([*ids, x], remaining - 1, gamma) for x in range(3))
        q = row("draft", ids)
        return sum(
            min(p[x], q[x]) * within([*ids, x], 0 if q[x] < least else left - 1, remaining - 1, gamma)
            + max(p[x] - q[x], 0.0) * started([*ids, x], remaining - 1, gamma)
            for x in range(3)
        )

    def started(ids: list[int], remaining: int, gamma: int) -> float:
        return 1 + within(ids, min(gamma, remaining - 1), remaining, gamma) if remaining else 0.0

    for gamma in (3,):
        num_rounds = without = 0.0
        for output in itertools.product(range(3), repeat=5):
            p = warp(Engine(models).score("target", ids, output[:-1])[0])
            chance = math.prod(float(p[i, token]) for i, token in enumerate(output))
            seen = agreement(prepared, 0, output)
            trace = replace(seen.trace, certainty=seen.certainty)
            num_rounds += chance * chain_rounds([trace], gamma, stop=Stop(least, 0.5)).rounds
            without += chance * chain_rounds([trace], gamma).rounds
        assert num_rounds == pytest.approx(started(ids, 5, gamma), abs=1e-12)
        assert num_rounds > without + 0.05


def test_how_far_a_draft_goes_off_the_output_is_fitted_to_what_was_counted() -> None:
    rounds = Rounds(tokens=9, by_drafted={2: 3.0}, by_tail={5: 2.0, 1: 1.0})
    for goes_on in (0.0, 0.3, 0.8):
        stop = Stop(0.4, goes_on)
        fitted = fit_stop(0.4, rounds, 6 + 2 * stop.tail(5) + stop.tail(1))
        assert fitted.goes_on == pytest.approx(goes_on, abs=1e-9)
    assert Stop(0.4, 0.5).tail(3) == pytest.approx(0.5 + 0.25 + 0.125)
    assert NEVER.tail(3) == 3


def test_with_costs_that_hold_lookups_and_early_stops_take_what_is_predicted() -> None:
    flags: dict[str, Any] = {"methods": "speculative,lookup", "gamma": "1,4,9", "limit": 2, "repeats": "1",
                             "eos_ids": (), "max_new_tokens": "60", "min_draft_probability": [0, 0.2]}  # fmt: skip
    advice = advised(**flags)
    lookups = {label for label in advice.checked if label.startswith("lookup")}
    stopping = {label for label in advice.checked if label.endswith("_p0.2")}
    assert len(lookups) == len(stopping) == 3
    for label, prediction in advice.forecast.predicted.items():
        assert prediction.mean_length == pytest.approx(advice.checked[label].mean_length)
        # What is drafted off the output is the draft's own affair; a chain's last round may have no call of it at all.
        close = 0.03 if label in stopping else 1e-9 if label in lookups else 5e-3
        assert predicted(advice)[label] == pytest.approx(measured(advice)[label], rel=close)
    assert {prediction.lengths for prediction in advice.forecast.predicted.values()} == {"simulated"}
    for label in lookups:  # v(n) = 1 + 0.04 (n - 1), at the mean number of positions
        counted = records_of(advice.timed, label)
        drafted = sum(r["num_drafted"] for r in counted) / sum(r["num_rounds"] for r in counted)
        prediction = advice.forecast.predicted[label]
        assert prediction.attainable == pytest.approx(prediction.mean_length / (1 + 0.04 * drafted))


def test_lookup_is_recommended_where_a_draft_costs_too_much() -> None:
    advice = advised(draft_step=1.0, methods="speculative,lookup", gamma="4", sweep=False, eos_ids=(),
                     limit=2, max_new_tokens="90", toy="vocab_size=12")  # fmt: skip
    assert advice.best is not None
    assert advice.best.startswith("lookup_k")


def test_without_a_draft_model_lookup_alone_is_weighed(workplace: Path) -> None:
    result = advise(*SMALL, "--draft", "none", "--output", "out")
    assert result.exit_code == 0, result.output
    advice = json.loads((workplace / "out/advice.json").read_text())
    labels = {each["label"] for each in advice["candidates"]}
    assert labels == {"lookup_k2", "lookup_k4", "suffix_k2", "suffix_k4"}
    assert (advice["alpha"], advice["c"]) == (None, None)
    assert list(advice["environment"]["models"]) == ["target"], "no draft was loaded"
    assert "only methods that need none were weighed" in result.output
    assert yaml.safe_load((workplace / "out/recommended.yaml").read_text())["pair"] == "toy"


def test_several_ngrams_and_probabilities_are_settings_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("min_draft_probability: [0, 0.4]\nmax_ngram: [2, 3]\nmethods: [speculative, lookup]\n")
    methods = config.resolve("arith_quick", {"config": str(file)}).methods
    assert [(m.label, m.max_ngram, m.min_draft_probability) for m in methods] == [
        ("speculative", 0, 0.0), ("speculative_p0.4", 0, 0.4), ("lookup_n2", 2, 0.0), ("lookup_n3", 3, 0.0),
    ]  # fmt: skip
