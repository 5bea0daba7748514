"""The Python door: few names, light to import, and the same tokens as `evaluate`."""

from __future__ import annotations

import inspect

import pytest

import specexp
from specexp.tasks.task import task


def test_the_public_names() -> None:
    assert specexp.__all__ == ["ConfigError", "LoadedPair", "Output", "SpecexpError", "load"]
    assert dir(specexp) == specexp.__all__
    for name in specexp.__all__:
        assert inspect.getdoc(getattr(specexp, name)), f"{name} says nothing of itself"
    assert list(inspect.signature(specexp.LoadedPair.generate).parameters) == [
        "self", "prompt", "method", "gamma", "temperature", "top_k", "top_p", "max_new_tokens", "min_new_tokens",
        "ignore_eos", "thinking_budget", "stop", "seed", "prompt_id",
        "on_text",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="has no attribute 'lod'; it has ConfigError"):
        specexp.lod  # noqa: B018


@pytest.fixture(scope="module")
def pair() -> specexp.LoadedPair:
    return specexp.load("arith_quick", limit=3)


def test_a_prompt_gives_text_tokens_and_counts(pair: specexp.LoadedPair) -> None:
    (example,) = task("arith").examples(1)
    plain = pair.generate(example.turns[0], "baseline")
    chain = pair.generate(example.turns[0], gamma=4)
    assert task("arith").extract(plain.text, True) == example.answer
    assert plain.finish_reason == "stop"
    assert chain.token_ids == plain.token_ids
    assert plain.tokens_per_call == 1.0
    assert 1.0 < chain.tokens_per_call <= 5.0
    assert chain.counts["num_rounds"] == chain.counts["num_target_calls"]
    assert pair.generate(example.turns[0], "draft_only").tokens_per_call == 0


def test_sampling_is_an_argument_and_a_seed_repeats_it(pair: specexp.LoadedPair) -> None:
    prompt = "Mia has 4 apples. Then she buys 3 more. How many apples does Mia have now?\n"
    one = pair.generate(prompt, temperature=2.0, top_p=0.95, seed=1)
    assert one.token_ids == pair.generate(prompt, temperature=2.0, top_p=0.95, seed=1).token_ids
    assert one.token_ids != pair.generate(prompt, temperature=2.0, top_p=0.95, seed=2).token_ids
    assert len(pair.generate(prompt, max_new_tokens=7).token_ids) <= 7


def test_what_load_was_given_of_methods_stays(pair: specexp.LoadedPair) -> None:
    prompt = "Mia has 4 apples. Then she buys 3 more. How many apples does Mia have now?\n"
    toy = specexp.load("toy_quick", gamma=2, accept_k=24, tree_budget=3)
    assert max(toy.generate("x").counts["accepted_histogram"].__len__() for _ in range(2)) <= 3
    assert toy.generate("hello", "topk").tokens_per_call > toy.generate("hello", "topk", gamma=1).tokens_per_call
    assert pair.generate(prompt, "specexec").token_ids == pair.generate(prompt, "baseline").token_ids
    assert all(tree["num_nodes"] <= 3 for tree in toy.generate("hello", "specexec").counts["trees"])


def test_bad_arguments_are_refused_all_at_once(pair: specexp.LoadedPair) -> None:
    with pytest.raises(specexp.ConfigError) as error:
        pair.generate("x", "speculativ", gamma=0, temperature=-1.0)
    assert [fault.split(";")[0].split(",")[0] for fault in error.value.faults] == [
        "gamma is 0", "temperature is -1.0", "unknown method 'speculativ'",
    ]  # fmt: skip
    with pytest.raises(specexp.ConfigError, match="method 'baseline,speculative' names 2 settings"):
        pair.generate("x", "baseline,speculative")
    with pytest.raises(specexp.SpecexpError, match="the prompt is empty"):
        specexp.load("toy_quick").generate("")
    with pytest.raises(specexp.ConfigError, match="unknown setting 'limt', did you mean 'limit'"):
        specexp.load("arith_quick", limt=3)
