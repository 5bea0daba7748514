"""Drafts with another tokenizer, exact by exhaustion: a draft over common tokens, and one that writes text."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from helpers.seeded_bugs import MATCH_BUGS, Bug, mutated
from helpers.toy_translation import ToyTranslation, Vocabulary
from specexp.certify.reference_distribution import gap, sequence_distribution

# Of the target and of the draft: all of the target's tokens are common, and the draft has longer ones; and the other
# way round, where one of the target's has no match. Then gamma and the length of outputs.
CASES: dict[str, tuple[Vocabulary, Vocabulary, int, int]] = {
    "draft merges": (("", "a", "b"), ("b", "ab", "", "a"), 2, 4),
    "target merges": (("", "a", "b", "ab"), ("b", "", "a", "c"), 2, 3),
    "nothing but letters": (("", "a", "bb"), ("b", "bba", "", "a"), 1, 4),
    "long chains": (("", "a"), ("aa", "", "a"), 3, 5),
}
KINDS = {"intersection": "token", "intersection as a block": "block", "text": "match"}


def distributions(case: str, kind: str, sampling: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """(the decoder's, the target's own) output distribution, by whatever modules are current."""
    toy = importlib.import_module("specexp.lm.toy")
    engine = importlib.import_module("specexp.engine")
    rules = importlib.import_module("specexp.decoding.rules")
    chain = importlib.import_module("specexp.decoding.chain")
    oracle = importlib.import_module("specexp.certify.oracle")
    translated = importlib.import_module("specexp.lm.translated")
    text_drafts = importlib.import_module("specexp.lm.text_drafts")
    target_texts, draft_texts, gamma, length = CASES[case]
    target = toy.ToyModel(len(target_texts), 3)
    made = text_drafts.TextModel if kind == "text" else translated.IntersectedModel
    draft = made(toy.ToyModel(len(draft_texts), 5), ToyTranslation(target_texts, draft_texts), len(target_texts))
    stops = [EOS] if options.pop("eos", True) else []
    bonus, cached = options.pop("bonus", True), options.pop("cached", True)
    decoder = chain.Chain(chain.DraftModel(gamma), chain.Lossless(), rules.Warp(**sampling), bonus, KINDS[kind])
    got = oracle.output_distribution(
        lambda: engine.Engine({"target": target, "draft": draft}, stops, cached=cached), decoder, [1], length
    )
    return got, sequence_distribution(target, [1], length, EOS if stops else None, **sampling)


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[2], SAMPLINGS[4]], ids=names)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_output_distribution_is_the_targets(case: str, kind: str, sampling: Any) -> None:
    got, expected = distributions(case, kind, sampling)
    assert gap(got, expected) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_it_holds_without_a_bonus_a_cache_or_an_eos(case: str, kind: str, sampling: Any) -> None:
    for options in ({}, {"bonus": False}, {"cached": False}, {"eos": False}):
        got, expected = distributions(case, kind, sampling, **options)
        assert gap(got, expected) < EXACT


def _fails(case: str, kind: str, sampling: Any) -> bool:
    try:
        got, expected = distributions(case, kind, sampling)
        return gap(got, expected) > 1e-6
    except Exception:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("bug", MATCH_BUGS, ids=lambda bug: bug.name)
def test_seeded_bugs_are_caught(bug: Bug) -> None:
    with mutated(bug):
        assert any(_fails(case, "text", sampling) for case in CASES for sampling in SAMPLINGS[:3])
