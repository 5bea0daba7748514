"""Suffix decoding: the automaton against a slow search for every substring, and its chains in the engine."""

from __future__ import annotations

import importlib
import random
import shutil
from collections.abc import Callable, Sequence
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
from specexp.engine import Engine, suffix_automaton
from specexp.engine.suffix_automaton import SuffixLengths
from specexp.errors import ConfigError
from specexp.lm.hf.hf_model import HFModel
from specexp.methods import roles_of

texts = st.lists(st.integers(0, 2), min_size=1, max_size=24)
outputs = st.lists(st.lists(st.integers(0, 2), max_size=10), max_size=4)


def shares(among: Sequence[Sequence[int]], pattern: list[int]) -> dict[int, tuple[int, int]]:
    """What followed a pattern in sequences: token -> (how often, where last)."""
    result: dict[int, tuple[int, int]] = {}
    begun = 0
    for ids in among:
        for place in range(len(pattern), len(ids)):
            if list(ids[place - len(pattern) : place]) == pattern:
                times, _ = result.get(ids[place], (0, 0))
                result[ids[place]] = (times + 1, begun + place)
        begun += len(ids)
    return result


def occurs(among: Sequence[Sequence[int]], pattern: list[int]) -> bool:
    return any(list(ids[i : i + len(pattern)]) == pattern for ids in among for i in range(len(ids)))


def slow_best(among: Sequence[Sequence[int]], ids: list[int], limits: SuffixLengths, own: bool, depth: int) -> Any:
    """Scan the sequences for every suffix of ids, of at most `depth` tokens, longest first; `own` is the sequence
    itself, without its end."""
    best: list[int] = []
    highest = 0.0
    for length in range(min(len(ids), depth), limits.shortest - 1, -1):
        pattern = ids[len(ids) - length :]
        if not (shares(among, pattern) if own else occurs(among, pattern)):
            continue
        tokens: list[int] = []
        product, score = 1.0, 0.0
        while len(tokens) < min(limits.most, max(1, int(limits.factor * length))):
            while pattern and not shares(among, pattern):
                pattern = pattern[1:]
            if not pattern:
                break
            after = shares(among, pattern)
            token = max(after, key=lambda each: after[each])
            product *= after[token][0] / sum(times for times, _ in after.values())
            if product < limits.least:
                break
            tokens.append(token)
            score += product
            pattern = [*pattern, token][-depth:]
        if score > highest:
            best, highest = tokens, score
    return best, highest


def slow(ids: list[int], earlier: Sequence[Sequence[int]], limits: SuffixLengths, depth: int) -> list[int]:
    tokens, score = slow_best([ids], ids, limits, True, depth)
    others, others_score = slow_best(earlier, ids, limits, False, depth)
    return others if others_score > score else tokens


def index_of(earlier: Sequence[Sequence[int]], depth: int, module: Any = suffix_automaton) -> Any:
    automaton = module.SuffixAutomaton(depth)
    for output in earlier:
        automaton.begin()
        for token in output:
            automaton.append(token)
    return module.SuffixIndex(automaton, depth)


@settings(deadline=None, max_examples=250, derandomize=True)
@given(
    texts, outputs, st.integers(0, 9), st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(1, 3), st.sampled_from([1, 2, 3, 5, suffix_automaton.DEPTH]),
)  # fmt: skip
def test_it_is_the_slow_search_at_every_length(
    ids: list[int], earlier: list[list[int]], most: int, factor: float, least: float, shortest: int, depth: int
) -> None:
    index, limits = index_of(earlier, depth), SuffixLengths(most, factor, least, shortest)
    for length in range(1, len(ids) + 1):
        assert index.continuation(ids[:length], limits) == slow(ids[:length], earlier, limits, depth), ids[:length]


def wrong(module: Any) -> str | None:
    """What an index says that the slow search does not, on random texts; None if nothing."""
    numbers = random.Random(1)
    for _ in range(250):
        ids: list[int] = []
        alphabet, factor, least = numbers.choice((2, 3, 5)), numbers.choice((0.5, 1, 3)), numbers.choice((0, 0.2, 0.5))
        limits = SuffixLengths(6, factor, least, numbers.choice((1, 1, 2)))
        some = range(numbers.choice((0, 1, 4)))
        earlier = [[numbers.randrange(alphabet) for _ in range(numbers.randrange(1, 9))] for _ in some]
        depth = numbers.choice((2, 4, 64))
        index = index_of(earlier, depth, module)
        while len(ids) < 25:
            ids += [numbers.randrange(alphabet) for _ in range(numbers.randrange(1, 4))]
            expected = slow(ids, earlier, limits, depth)
            if (got := index.continuation(ids, limits)) != expected:
                return f"{got} instead of {expected} after {ids}"
    return None


@pytest.mark.parametrize("bug", [None, *SUFFIX_BUGS], ids=lambda bug: bug.name if bug else "none")
def test_a_seeded_bug_in_the_automaton_is_caught(bug: Bug | None) -> None:
    with mutated(bug):
        try:
            how = wrong(importlib.import_module("specexp.engine.suffix_automaton"))
        except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
            how = str(error)
    assert (how is None) == (bug is None)


def test_it_has_at_most_two_states_a_token() -> None:
    numbers = random.Random(0)
    for alphabet in (1, 2, 50):
        automaton, ids = suffix_automaton.SuffixAutomaton(), [numbers.randrange(alphabet) for _ in range(2000)]
        for number, token in enumerate(ids):
            if number % 400 == 0:
                automaton.begin()
            automaton.append(token)
        assert len(automaton._next) <= 2 * len(ids)


class Counted(list[Any]):
    """A list that counts what is read of it, one by one."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)


REPETITIVE = {
    "one token": [1] * 3000,
    "runs that grow": [token for length in range(1, 77) for token in [*[1] * length, 100 + length]] + [1] * 75,
    "a period": [*range(40)] * 75,
    "two tokens": [1, 2, 1, 1, 2] * 600,
}


@pytest.mark.parametrize("ids", REPETITIVE.values(), ids=REPETITIVE.keys())
def test_a_token_of_a_repetitive_text_takes_a_limited_number_of_steps(ids: list[int]) -> None:
    """3000 equal tokens would take 1500 links each if all their suffixes were counted; a search, 3000 walks."""
    automaton, depth = suffix_automaton.SuffixAutomaton(), suffix_automaton.DEPTH
    automaton._link = links = Counted(automaton._link)
    most = 0
    for token in ids:
        before = links.reads
        automaton.append(token)
        most = max(most, links.reads - before)
    # The states of two tokens' suffixes, and what transitions take, which is a constant for each token on average.
    assert links.reads <= (2 * (depth + 1) + 8) * len(ids)
    assert most <= 4 * depth
    automaton._followed = walked = Counted(automaton._followed)
    limits = SuffixLengths(16, 4.0, 0.0)
    links.reads = 0
    tokens, _ = automaton.best(*automaton.repeated(), limits)
    assert len(tokens) == 16
    assert walked.reads <= 2 * depth * (limits.most + 1)
    assert links.reads <= 2 * depth * (limits.most + 2)


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
    assert suffix_automaton.SuffixIndex().continuation(ids, SuffixLengths(most, factor, least)) == expected


@pytest.mark.at_most(fast=2)
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
            ends = sum(n * times for n, times in enumerate(out.drafted_before_end))
            assert sum(counts["num_drafted"] for counts in out.proposers.values()) in (0, ends)
    assert min(counted[name] for name in ("alone", "suffix", "draft")) > 0, "who was never accepted says little"


def test_a_draft_model_that_has_no_turn_is_not_asked() -> None:
    (method,) = config.resolve("arith_quick", {"methods": "suffix"}).methods
    assert (method.gamma, method.suffix_factor, method.suffix_min_probability) == (16, 1.0, 0.1)
    assert roles_of(method) == {"target"}


def test_proposers_are_named_in_their_order(workplace: Any) -> None:
    for text, names, roles in [
        ("gamma: 8", "suffix,draft", {"target", "draft"}),
        ("proposers: [lookup, draft]", "lookup,draft", {"target", "draft"}),
        ("proposers: lookup,suffix", "lookup,suffix", {"target"}),
    ]:
        (workplace / "own.yaml").write_text(text)
        (method,) = config.resolve("arith_quick", {"methods": "chained", "config": "own.yaml"}).methods
        assert (method.proposers, roles_of(method)) == (names, roles)
    for wrong in ("proposers: [tree]", "proposers: [draft, draft]", "proposers: [draft, suffix]"):
        (workplace / "own.yaml").write_text(wrong)
        with pytest.raises(ConfigError, match="proposer"):
            config.resolve("arith_quick", {"methods": "chained", "config": "own.yaml"})


@pytest.mark.slow
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
    assert set(totals) == {"suffix", "draft"}
    ends = sum(n * times for record in rows for n, times in enumerate(record["accepted_before_end"]))
    assert sum(each["num_accepted"] for each in totals.values()) == ends
    run = flat_runs()["chained"].data
    rounds = sum(record["num_rounds"] for record in rows)
    for name, each in totals.items():
        assert run.metrics[f"proposer/{name}_rounds"] == pytest.approx(each["num_rounds"] / rounds)
        assert run.metrics[f"proposer/{name}_rate"] == pytest.approx(each["num_accepted"] / each["num_drafted"])
        assert run.metrics[f"proposer/{name}_length"] == pytest.approx(each["num_accepted"] / each["num_rounds"])
    assert run.params["proposers"] == "suffix,draft"
    page = (workplace / "out" / "report.html").read_text()
    assert "suffix drafted in" in page
    assert 'data-metric="proposer/draft_rate"' in page
    assert '"origin":["' in (workplace / "out" / "tokens.json").read_text().replace(" ", "")


@pytest.mark.nightly
def test_a_run_remembers_its_outputs_and_a_resumed_one_the_same(workplace: Any) -> None:
    (workplace / "own.yaml").write_text("suffix_memory: [prompt, run]\n")
    settings = ["--experiment", "arith_quick", "--config", "own.yaml", "--methods", "baseline,suffix", "--limit", "8",
                "--max-new-tokens", "48"]  # fmt: skip
    for batch in ("1", "2"):
        whole, resumed = (workplace / f"{name}-{batch}" for name in ("whole", "resumed"))
        result = evaluate(*settings, "--batch", batch, "--output", str(whole))
        assert result.exit_code == 0, result.output
        rows = {(row["label"], row["prompt_id"]): row for row in records(whole)}
        names = sorted({prompt for _, prompt in rows})
        for label in ("suffix", "suffix_run"):
            assert all(rows[label, name]["token_ids"] == rows["baseline", name]["token_ids"] for name in names)
        rounds = {label: sum(rows[label, name]["num_rounds"] for name in names) for label in ("suffix", "suffix_run")}
        assert rounds["suffix_run"] < rounds["suffix"] or batch == "2", "all eight are of one group"
        first = next(row["prompt_id"] for row in records(whole))
        assert rows["suffix_run", first]["num_rounds"] == rows["suffix", first]["num_rounds"], "nothing was before it"

        shutil.copytree(whole, resumed)
        lines = (resumed / "records.jsonl").read_text().splitlines(keepends=True)
        (resumed / "records.jsonl").write_text("".join(lines[: len(lines) // 2]))
        result = evaluate(*settings, "--batch", batch, "--output", str(resumed), "--resume", "true")
        assert result.exit_code == 0, result.output
        again = {(row["label"], row["prompt_id"]): row for row in records(resumed)}
        for key, row in rows.items():
            assert again[key]["accepted_histogram"] == row["accepted_histogram"], key
