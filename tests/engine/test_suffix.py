"""Suffix decoding: the automaton against a slow search for every substring, and its chains in the engine."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cli_runner import evaluate, flat_runs, records
from helpers.generation import LENGTH, generate, prompts
from helpers.model_folders import FAMILIES
from helpers.seeded_bugs import SUFFIX_BUGS, Bug, mutated
from specexp import config
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless, Suffix
from specexp.decoding.protocol import SuffixLimits
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.engine.suffix_automaton import SuffixAutomaton
from specexp.errors import ConfigError
from specexp.lm.hf.hf_model import HFModel
from specexp.methods import roles_of

texts = st.lists(st.integers(0, 2), min_size=1, max_size=24)


def shares(ids: list[int], pattern: list[int]) -> dict[int, tuple[int, int]]:
    """What followed a pattern in ids: token -> (how often, where last)."""
    result: dict[int, tuple[int, int]] = {}
    for place in range(len(pattern), len(ids)):
        if ids[place - len(pattern) : place] == pattern:
            times, _ = result.get(ids[place], (0, 0))
            result[ids[place]] = (times + 1, place)
    return result


def slow(ids: list[int], most: int, factor: float, least: float, shortest: int = 1) -> list[int]:
    """The same by scanning the text for every suffix, longest first."""
    best: list[int] = []
    highest = 0.0
    for length in range(len(ids) - 1, shortest - 1, -1):
        tokens: list[int] = []
        product, score = 1.0, 0.0
        pattern = ids[len(ids) - length :]
        if not shares(ids, pattern):
            continue
        while len(tokens) < min(most, max(1, int(factor * length))):
            while pattern and not shares(ids, pattern):
                pattern = pattern[1:]
            if not pattern:
                break
            after = shares(ids, pattern)
            token = max(after, key=lambda each: after[each])
            product *= after[token][0] / sum(times for times, _ in after.values())
            if product < least:
                break
            tokens.append(token)
            score += product
            pattern = [*pattern, token]
        if score > highest:
            best, highest = tokens, score
    return best


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    texts, st.integers(0, 9), st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(1, 3),
)  # fmt: skip
def test_it_is_the_slow_search_at_every_length(
    ids: list[int], most: int, factor: float, least: float, shortest: int
) -> None:
    automaton = SuffixAutomaton()
    for length in range(1, len(ids) + 1):
        expected = slow(ids[:length], most, factor, least, shortest)
        assert automaton.continuation(ids[:length], most, factor, least, shortest) == expected, ids[:length]


def wrong(automaton_class: Any) -> str | None:
    """What an automaton says that the slow search does not, on random texts; None if nothing."""
    numbers = random.Random(1)
    for _ in range(300):
        ids: list[int] = []
        automaton = automaton_class()
        alphabet, factor, least = numbers.choice((2, 3, 5)), numbers.choice((0.5, 1, 3)), numbers.choice((0, 0.2, 0.5))
        shortest = numbers.choice((1, 1, 2))
        while len(ids) < 25:
            ids += [numbers.randrange(alphabet) for _ in range(numbers.randrange(1, 4))]
            expected = slow(ids, 6, factor, least, shortest)
            if (got := automaton.continuation(ids, 6, factor, least, shortest)) != expected:
                return f"{got} instead of {expected} after {ids}"
    return None


@pytest.mark.parametrize("bug", [None, *SUFFIX_BUGS], ids=lambda bug: bug.name if bug else "none")
def test_a_seeded_bug_in_the_automaton_is_caught(bug: Bug | None) -> None:
    with mutated(bug):
        try:
            how = wrong(importlib.import_module("specexp.engine.suffix_automaton").SuffixAutomaton)
        except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
            how = str(error)
    assert (how is None) == (bug is None)


def test_it_has_less_than_two_states_a_token() -> None:
    numbers = random.Random(0)
    for alphabet in (1, 2, 50):
        automaton, ids = SuffixAutomaton(), [numbers.randrange(alphabet) for _ in range(2000)]
        automaton.continuation(ids, 4, 1, 0)
        assert len(automaton._next) <= 2 * len(ids)


@pytest.mark.parametrize(
    "ids,most,factor,least,expected",
    [
        ([1, 2, 3, 9, 1, 2, 3], 8, 4, 0, [9, 1, 2, 3, 9, 1, 2, 3]),  # a period goes on
        ([1, 2, 3, 9, 1, 2, 3], 8, 1, 0, [9, 1, 2]),  # as many as match
        ([5, 1, 7, 5, 2, 7, 5, 2, 7, 5], 1, 1, 0, [2]),  # what followed more often
        ([5, 1, 7, 5, 2, 7, 8, 5], 1, 1, 0, [2]),  # of equal ones the latest
        ([5, 1, 7, 5, 2, 7, 8, 5], 1, 1, 0.6, []),  # neither is likely enough
        ([1, 2, 3], 4, 2, 0, []),  # nothing occurred before
        ([1, 1], 0, 1, 0, []),
    ],
)
def test_what_it_proposes(ids: list[int], most: int, factor: float, least: float, expected: Any) -> None:
    assert SuffixAutomaton().continuation(ids, most, factor, least) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_equals_generate(pair: Callable[[str], dict[str, HFModel]], family: str) -> None:
    models = pair(family)
    turns = {"suffix": Suffix(6, SuffixLimits(), 2), "lookup": Lookup(4, 3, 2), "draft": DraftModel(4)}
    counted: dict[str, int] = {}
    for proposer in (Suffix(6, SuffixLimits(2.0)), InTurn(turns)):
        for prompt in prompts():
            out = Engine(models).generate(Chain(proposer, Lossless(), Warp()), prompt, LENGTH, CertainRng())
            assert out.token_ids == generate(models["target"], prompt, LENGTH, None)
            assert out.num_target_positions == out.num_rounds + out.num_drafted
            if isinstance(proposer, Suffix):
                assert (out.num_draft_calls, out.proposers) == (0, {})
                counted["alone"] = counted.get("alone", 0) + out.num_accepted
            for name, counts in out.proposers.items():
                counted[name] = counted.get(name, 0) + counts["num_accepted"]
            assert sum(counts["num_drafted"] for counts in out.proposers.values()) in (0, out.num_drafted)
    assert min(counted[name] for name in ("alone", "suffix", "draft")) > 0, "who was never accepted says little"


def test_a_draft_model_that_has_no_turn_is_not_asked() -> None:
    (method,) = config.resolve("arith_quick", {"methods": "suffix"}).methods
    assert (method.gamma, method.suffix_factor, method.suffix_min_probability) == (16, 1.0, 0.1)
    assert roles_of(method) == {"target"}


def test_proposers_are_named_in_their_order(workplace: Any) -> None:
    for text, names, roles in [
        ("gamma: 8", "suffix,lookup,draft", {"target", "draft"}),
        ("proposers: [lookup, draft]", "lookup,draft", {"target", "draft"}),
        ("proposers: lookup,suffix", "lookup,suffix", {"target"}),
    ]:
        (workplace / "own.yaml").write_text(text)
        (method,) = config.resolve("arith_quick", {"methods": "chained", "config": "own.yaml"}).methods
        assert (method.proposers, roles_of(method)) == (names, roles)
    for wrong in ("proposers: [tree]", "proposers: [draft, draft]"):
        (workplace / "own.yaml").write_text(wrong)
        with pytest.raises(ConfigError, match="proposer"):
            config.resolve("arith_quick", {"methods": "chained", "config": "own.yaml"})


def test_an_evaluation_counts_each_proposer(workplace: Any) -> None:
    """In records, in metrics, and in words on the page."""
    (workplace / "own.yaml").write_text("min_match: 1\nsuffix_min_probability: 0.1\n")
    settings = ["--methods", "baseline,chained", "--limit", "3", "--max-new-tokens", "60", "--output", "out"]
    result = evaluate("--experiment", "arith_quick", "--config", "own.yaml", *settings)
    assert result.exit_code == 0, result.output
    rows = [record for record in records(workplace / "out") if record["label"] == "chained"]
    totals: dict[str, dict[str, int]] = {}
    for record in rows:
        for name, counts in record["proposers"].items():
            for key, value in counts.items():
                totals.setdefault(name, dict.fromkeys(counts, 0))[key] += value
    assert set(totals) == {"suffix", "draft"}, "lookup finds nothing that suffix decoding does not"
    assert sum(each["num_accepted"] for each in totals.values()) == sum(record["num_accepted"] for record in rows)
    run = flat_runs()["chained"].data
    rounds = sum(record["num_rounds"] for record in rows)
    for name, each in totals.items():
        assert run.metrics[f"proposer/{name}_rounds"] == pytest.approx(each["num_rounds"] / rounds)
        assert run.metrics[f"proposer/{name}_rate"] == pytest.approx(each["num_accepted"] / each["num_drafted"])
        assert run.metrics[f"proposer/{name}_length"] == pytest.approx(each["num_accepted"] / each["num_rounds"])
    assert run.params["proposers"] == "suffix,lookup,draft"
    page = (workplace / "out" / "report.html").read_text()
    assert "suffix drafted in" in page
    assert 'data-metric="proposer/draft_rate"' in page
    assert '"origin":["' in (workplace / "out" / "tokens.json").read_text().replace(" ", "")
